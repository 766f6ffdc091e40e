"""The lora engine: low-rank adapters on any causal language model of Hugging Face's format.

The server's process trains nothing itself: each job runs in a child process (`child`), which can
run out of memory or be killed without harm to the server. Answers come from a thread of the
server's process (`serving`) or from vLLM (`vllm`). torch is imported when it is first needed.
"""
