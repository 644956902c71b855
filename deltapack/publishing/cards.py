"""The model card of a pack: what it is over which base, how it is loaded, and its figures; nothing that is not known is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltapack.merging.basecard import FRONT, front_of, is_short, kept_of
from deltapack.merging.cardtext import plain
from deltapack.packs.inspecting import PackSummary
from deltapack.publishing.frontmatter import completed, with_front
from deltapack.publishing.hub import is_repo

__all__ = ["LIBRARY", "CardFacts", "card_text", "completed_card", "is_own", "relation_of"]

LIBRARY = "deltapack"
_MARK = "<!-- `deltapack push` writes this text anew each time; where this line is gone, it leaves the text alone. -->"
_HEADS = ("CausalLM", "MaskedLM", "Seq2SeqLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
_MOST_TAGS = 50


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        summary: The pack.
        repo: The repository that it goes to, as `ORG/NAME`.
        base: The repository of the base; `None` where it is not known.
        revision: The commit of the base, if known.
        base_front: Front matter of the base's card.
        architecture: Class of the model by config.json; `None` where transformers does not load the repository.
        relation: What the pack is to the base, in the words of the Hub.
    """

    summary: PackSummary
    repo: str
    base: str | None = None
    revision: str | None = None
    base_front: Mapping[str, Any] | None = None
    architecture: str | None = None
    relation: str = "finetune"


def relation_of(recipe: Mapping[str, Any], carried: Mapping[str, Any]) -> str:
    """Return what a pack is to its base: `merge`, `adapter` (by the card that it carries: PEFT's say so) or `finetune`."""
    return "merge" if "packs" in recipe else "adapter" if carried.get("library_name") == "peft" else "finetune"


def is_own(card: bytes) -> bool:
    """Whether the text of a card is deltapack's, and nobody else's."""
    return _MARK.encode() in card


def card_text(facts: CardFacts) -> str:
    """Return a new card."""
    return with_front(_front(facts), f"{_MARK}\n\n{_body(facts)}")


def completed_card(card: bytes, facts: CardFacts, path: Path) -> tuple[str, list[str]]:
    """Return a card of someone's with what its front matter lacks, and what the user should be told of it.

    Its text stays. Of its entries only two change: `library_name`, as the repository has no weights for another library, and
    `base_model`, which gets the base where it does not name it.

    Args:
        card: The card, UTF-8.
        facts: What is known of the pack.
        path: What messages name.

    Raises:
        RecipeError: Its front matter cannot be read.
    """
    said, front = front_of(card, path), _front(facts)
    notes = []
    wanted = {key: value for key, value in front.items() if said.get(key) is None}
    tags = said.get("tags")
    own = [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, list) else []
    library = said.get("library_name")
    if library is not None and library != LIBRARY:
        notes.append(f"the card's library_name was {library}, and is {LIBRARY} now: the repository has a pack in place of weights")
        wanted["library_name"] = LIBRARY
        own += [library] if library not in own else []
    if own:
        wanted["tags"] = [*own, *([] if LIBRARY in own else [LIBRARY])]
    bases = said.get("base_model")
    named = [bases] if isinstance(bases, str) else list(bases) if isinstance(bases, list) else []
    if named and facts.base is not None and facts.base not in named:
        notes.append(f"the card named {', '.join(map(str, named))} as base_model, and names {facts.base}, too")
        wanted["base_model"] = [facts.base, *filter(is_repo, named)]
    text = completed(card, wanted, path)
    found = FRONT.match(card)
    if LIBRARY.encode() not in card[found.end() if found else 0 :]:
        notes.append("the card's text does not say how a pack is loaded; --card new writes one that does")
    if "model-index" in said and not _is_exact(facts.summary):
        notes.append("the results in the card's front matter were measured on another model than what the pack restores: it is not exact")
    return text, notes


def _front(facts: CardFacts) -> dict[str, Any]:
    """Return what the Hub reads; of the base's card what is still true."""
    said = facts.base_front or {}
    kept = {key: value for key, value in kept_of(said).items() if key != "library_name"}
    tags = said.get("tags")
    # Those with a colon are the Hub's own, or say what the base was made of.
    theirs = [tag for tag in tags if is_short(tag) and ":" not in tag] if isinstance(tags, list) else []
    base = {} if facts.base is None else {"base_model": facts.base, "base_model_relation": facts.relation}
    return {**base, "library_name": LIBRARY, **kept, "tags": list(dict.fromkeys([*theirs[:_MOST_TAGS], LIBRARY]))}


def _body(facts: CardFacts) -> str:
    words = {"merge": "A merge over", "adapter": "An adapter of", "finetune": "A fine-tune of"}
    base = "its base" if facts.base is None else f"[`{facts.base}`](https://huggingface.co/{facts.base})"
    what = words.get(facts.relation, words["finetune"])
    return f"""# {plain(facts.repo.rpartition("/")[2])}

{what} {base}, as a [deltapack](https://github.com/deltapack/deltapack) pack: a difference, from which the model is made again.
{_fidelity(facts.summary)}

## Use

{_usage(facts)}
## Figures

| | |
|---|---|
{_table(facts)}
"""


def _fidelity(summary: PackSummary) -> str:
    if _is_exact(summary):
        return "Every tensor comes back bit for bit."
    return "The weights that come back are close to the ones that were packed, and not the same; every one is checked as it is restored."


def _is_exact(summary: PackSummary) -> bool:
    """Whether nothing is added to anything: every tensor is the base's, or is told bit for bit."""
    return "packs" not in summary.recipe and not any(tensor.factors for tensor in summary.tensors)


def _usage(facts: CardFacts) -> str:
    pack, name = plain(facts.summary.path.name), plain(facts.repo.rpartition("/")[2])
    at = f"{facts.base or 'BASE'}@{facts.revision}" if facts.base and facts.revision else facts.base or "BASE"
    return f"""{_snippet(facts)}As a checkpoint:

```sh
pip install 'deltapack[hub]'
deltapack pull {facts.repo} -o {name}
deltapack apply {at} {name}/{pack} -o restored/
```
"""


def _snippet(facts: CardFacts) -> str:
    if facts.architecture is None:
        return ""
    head = next((head for head in _HEADS if facts.architecture.endswith(f"For{head}")), None)
    auto = f"AutoModelFor{head}" if head else "AutoModel"
    return f"""With transformers, which fetches the base, too; the first line is needed (`pip install 'deltapack[hub]' transformers`):

```python
import deltapack.integrations.transformers
from transformers import {auto}

model = {auto}.from_pretrained("{facts.repo}")
```

"""


def _table(facts: CardFacts) -> str:
    summary = facts.summary
    at = f", commit `{plain(facts.revision)}`" if facts.revision else ""
    rows = [
        ("pack", f"`{plain(summary.path.name)}`, {_size(summary.pack_bytes)} ({summary.pack_bytes:,} bytes)"),
        ("restored checkpoint", f"{_size(summary.checkpoint_bytes)}, {summary.ratio:.1f} times larger"),
        ("made with", _made(summary)),
        ("tensors", ", ".join(f"{count:,} {kind}" for kind, count in summary.kinds.items()) or "none"),
        ("kept whole", _whole(summary)),
        ("base", f"`{facts.base or 'not named'}`{at}, fingerprint `{summary.base_fingerprint}`"),
        ("pack id", f"`{summary.id}`"),
        ("content id", f"`{summary.content_id}`"),
        ("written by", plain(summary.created_by)),
    ]
    if summary.delta_elements:
        rows.insert(2, ("bits per changed weight", f"{summary.delta_bits_per_weight:.4g}"))
    return "\n".join(f"| {label} | {value} |" for label, value in rows)


def _made(summary: PackSummary) -> str:
    """Return how a pack was made, as it says itself."""
    recipe = summary.recipe
    if "packs" in recipe:
        return f"merge by {plain(str(recipe.get('method', '')))}"
    said = [plain(str(recipe.get("method", "")))]
    said += [f"{name.replace('_', ' ')} {plain(str(recipe[name]))}" for name in ("target", "drop_rate", "values") if name in recipe]
    return ", ".join(filter(None, said)) or "not told"


def _whole(summary: PackSummary) -> str:
    """Return how many tensors lose nothing, or only the bits that their values are rounded to."""
    exact = sum(tensor.kind in ("exact", "stored") for tensor in summary.tensors)
    differing = [tensor for tensor in summary.tensors if tensor.factors and not tensor.low_rank_elements]
    every = sum(tensor.nnz == tensor.elements * len(tensor.factors) for tensor in differing)
    return f"{exact:,} tensors bit for bit, {every:,} with the difference of every element"


def _size(count: int) -> str:
    power, unit = next((power, unit) for power, unit in ((9, "GB"), (6, "MB"), (3, "kB"), (0, "B")) if count >= 10**power or not power)
    return f"{count / 10**power:.{2 if power else 0}f} {unit}"
