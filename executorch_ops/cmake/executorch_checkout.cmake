# ExecuTorch built along from a checkout, under the target names of its wheel. The way to Android:
#   cmake -S executorch_ops -B build -DEXECUTORCH_ROOT=<checkout> -DCMAKE_TOOLCHAIN_FILE=$ANDROID_NDK/build/cmake/android.toolchain.cmake \
#         -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-28
# Not tested by the project's own checks, which build against the wheels.
set(EXECUTORCH_BUILD_EXTENSION_DATA_LOADER ON)
set(EXECUTORCH_BUILD_EXTENSION_FLAT_TENSOR ON)
set(EXECUTORCH_BUILD_EXTENSION_MODULE ON)
set(EXECUTORCH_BUILD_EXTENSION_NAMED_DATA_MAP ON)
set(EXECUTORCH_BUILD_EXTENSION_TENSOR ON)
set(EXECUTORCH_BUILD_KERNELS_OPTIMIZED ON)
set(EXECUTORCH_BUILD_PTHREADPOOL ON)
set(EXECUTORCH_BUILD_CPUINFO ON)
set(EXECUTORCH_BUILD_XNNPACK ON)
add_subdirectory(${EXECUTORCH_ROOT} executorch EXCLUDE_FROM_ALL)

function(_mobizo_executorch_target name)
  add_library(mobizo_et_${name} INTERFACE)
  target_link_libraries(mobizo_et_${name} INTERFACE ${ARGN})
  add_library(executorch::${name} ALIAS mobizo_et_${name})
endfunction()
_mobizo_executorch_target(runtime executorch extension_module_static extension_tensor)
_mobizo_executorch_target(kernels_optimized optimized_native_cpu_ops_lib)
_mobizo_executorch_target(backend_xnnpack xnnpack_backend)
_mobizo_executorch_target(threadpool extension_threadpool)
target_compile_definitions(mobizo_et_threadpool INTERFACE ET_USE_THREADPOOL)
