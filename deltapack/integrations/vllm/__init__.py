"""deltapack in vLLM: a load format, methods of the workers for packs on a running server, and a backend of weight transfer.

vLLM finds it by the entry point `vllm.general_plugins`. Nothing here imports vLLM before a module that needs it is used.
"""
