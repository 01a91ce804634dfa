"""llama.cpp's server with one model: python llama_server.py MODEL.gguf SOCKET CONTEXT

It is a process of its own: whatever the C++ threads do, it can be killed.
"""

import sys

import xllamacpp

path, socket_path, context = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.hostnames = path, [socket_path]
params.n_ctx, params.n_parallel, params.n_gpu_layers = int(context), 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.warmup, params.fit_params, params.verbosity = False, False, -1
server = xllamacpp.Server(params)
print("ready", flush=True)
sys.stdin.read()
