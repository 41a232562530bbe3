// A CUDA that computes nothing: enough of the libraries' interfaces for ONNX Runtime's CUDA provider to start, choose kernels,
// place weights and run graphs whose numbers do not matter, on a machine without a GPU. Memory of the device is the processor's.
//
// One file, compiled once for each library (-DCUDART, -DCUBLAS, ...). The environment plays the machine:
//   FAKE_CUDA_ERROR   what choosing a device answers (35: old driver, 100: no GPU)
//   FAKE_CUDA_LAUNCH  what starting a kernel answers (209: no kernel for this GPU)
//   FAKE_CUDA_MB      memory of the device
//   FAKE_CUDA_ARCH    its compute capability (89: 8.9; otherwise 9.0)
//   FAKE_CUDA_LOG     a file for what was done: each copy to (1) and from (2) the device, each start of a recorded graph, and the
//                     memory in use after each piece that is taken
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING(name) int name() { return 0; }

static int said(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}
static int architecture(void) { return said("FAKE_CUDA_ARCH", 90); }

#ifdef CUDART
typedef int Error;

static Error last = 0;
static size_t used = 0;

static size_t total(void) { return (size_t)said("FAKE_CUDA_MB", 100000) << 20; }

static Error room(void **at, size_t bytes) {
    *at = NULL;
    if (posix_memalign(at, 512, bytes ? bytes : 1)) return last = 2;
    memset(*at, 0, bytes);
    return 0;
}

static void note(const char *what, int kind, size_t bytes) {
    static FILE *log = NULL;
    if (!log && getenv("FAKE_CUDA_LOG")) log = fopen(getenv("FAKE_CUDA_LOG"), "a");
    if (log) {
        fprintf(log, "%s %d %zu\n", what, kind, bytes);
        fflush(log);
    }
}

Error cudaMalloc(void **at, size_t bytes) {
    if (used + bytes > total()) return last = 2;
    Error error = room(at, bytes);
    used += malloc_usable_size(*at);
    note("used", 0, used);
    return error;
}
Error cudaMallocFromPoolAsync(void **at, size_t bytes, void *pool, void *stream) { return cudaMalloc(at, bytes); }
Error cudaHostAlloc(void **at, size_t bytes, unsigned flags) { return room(at, bytes); }
Error cudaMallocHost(void **at, size_t bytes) { return room(at, bytes); }
Error cudaFree(void *at) {
    used -= malloc_usable_size(at);
    free(at);
    return 0;
}
Error cudaFreeAsync(void *at, void *stream) { return cudaFree(at); }
Error cudaFreeHost(void *at) { free(at); return 0; }
Error cudaMemGetInfo(size_t *left, size_t *all) { *all = total(); *left = *all - used; return 0; }
Error cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    note("copy", kind, bytes);
    memcpy(to, from, bytes);
    return 0;
}
Error cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    return cudaMemcpy(to, from, bytes, kind);
}
Error cudaMemcpy2DAsync(char *to, size_t step, const char *from, size_t other, size_t width, size_t height, int kind, void *s) {
    for (size_t row = 0; row < height; row++) memcpy(to + row * step, from + row * other, width);
    return 0;
}
Error cudaMemset(void *at, int value, size_t bytes) { memset(at, value, bytes); return 0; }
Error cudaMemsetAsync(void *at, int value, size_t bytes, void *stream) { memset(at, value, bytes); return 0; }

Error cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Error cudaDeviceGetByPCIBusId(int *device, const char *place) { *device = 0; return 0; }
Error cudaHostGetDevicePointer(void **there, void *here, unsigned flags) { *there = here; return 0; }
Error cudaSetDevice(int device) { return device == 0 ? said("FAKE_CUDA_ERROR", 0) : 101; }
Error cudaGetDevice(int *device) { *device = 0; return 0; }
Error cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
Error cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
// An H200 as far as it matters: the offsets are those of CUDA 13's `cudaDeviceProp`.
Error cudaGetDeviceProperties(char *p, int device) {
    memset(p, 0, 700);
    strcpy(p, "a device that computes nothing");
    *(size_t *)(p + 288) = total();
    *(size_t *)(p + 296) = 49152;
    *(int *)(p + 304) = 65536;
    *(int *)(p + 308) = 32;
    *(int *)(p + 320) = 1024;
    int most[] = {1024, 1024, 64, 2147483647, 65535, 65535};
    memcpy(p + 324, most, sizeof most);
    *(int *)(p + 360) = architecture() / 10;
    *(int *)(p + 364) = architecture() % 10;
    *(int *)(p + 384) = *(int *)(p + 388) = 132;
    return 0;
}
Error cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;    // threads of a block
    case 10: *value = 32; break;     // threads of a warp
    case 16: *value = 132; break;    // multiprocessors
    case 75: *value = architecture() / 10; break; // compute capability
    case 76: *value = architecture() % 10; break;
    case 97: *value = 232448; break; // shared memory of a block
    case 115: *value = 0; break;     // memory pools
    default: *value = 1;
    }
    return 0;
}

const char *cudaGetErrorString(Error error) {
    switch (error) {
    case 2: return "out of memory";
    case 35: return "CUDA driver version is insufficient for CUDA runtime version";
    case 100: return "no CUDA-capable device is detected";
    case 101: return "invalid device ordinal";
    case 209: return "no kernel image is available for execution on the device";
    case 802: return "system not yet initialized";
    default: return "unknown error";
    }
}
const char *cudaGetErrorName(Error error) {
    switch (error) {
    case 2: return "cudaErrorMemoryAllocation";
    case 35: return "cudaErrorInsufficientDriver";
    case 100: return "cudaErrorNoDevice";
    case 101: return "cudaErrorInvalidDevice";
    case 209: return "cudaErrorNoKernelImageForDevice";
    case 802: return "cudaErrorSystemNotReady";
    default: return "cudaErrorUnknown";
    }
}
Error cudaGetLastError(void) { Error error = last; last = 0; return error; }
Error cudaPeekAtLastError(void) { return last; }

static Error launch(void) { return last = said("FAKE_CUDA_LAUNCH", 0); }
Error cudaLaunchKernel() { return launch(); }
Error __cudaLaunchKernel() { return launch(); }
Error cudaLaunchKernelExC() { return launch(); }
Error cudaLaunchCooperativeKernel() { return launch(); }
Error cudaLaunchHostFunc(void *stream, void (*run)(void *), void *with) { run(with); return 0; }

static Error handle(void **at) { *at = malloc(64); return 0; }
Error cudaStreamCreate(void **stream) { return handle(stream); }
Error cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
Error cudaEventCreate(void **event) { return handle(event); }
Error cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
Error cudaMemPoolCreate(void **pool, const void *like) { return handle(pool); }
Error cudaMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) { *value = 0; return 0; }
Error cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return 0; }
Error cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Error cudaPointerGetAttributes(void *attributes, const void *at) { memset(attributes, 0, 32); return 0; }
Error cudaFuncGetAttributes(void *attributes, const void *function) { memset(attributes, 0, 80); return 0; }
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return 0; }
Error cudaStreamEndCapture(void *stream, void **graph) { return handle(graph); }
Error cudaGraphInstantiate(void **started, void *graph, unsigned long long flags) { return handle(started); }
Error cudaGraphLaunch(void *started, void *stream) { note("graph", 0, 0); return 0; }
static int nothing() { return 0; }
Error cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags, int *how) {
    *found = (void *)nothing;
    if (how) *how = 0;
    return 0;
}
void *__cudaRegisterFatBinary(void *binary) { return malloc(64); }
Error __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) {
    memset(grid, 0, 12);
    memset(block, 0, 12);
    *shared = 0;
    *stream = NULL;
    return 0;
}
NOTHING(__cudaGetKernel)
NOTHING(__cudaPushCallConfiguration)
NOTHING(__cudaRegisterFatBinaryEnd)
NOTHING(__cudaRegisterFunction)
NOTHING(__cudaRegisterVar)
NOTHING(__cudaUnregisterFatBinary)
NOTHING(cudaDeviceSynchronize)
NOTHING(cudaEventDestroy)
NOTHING(cudaEventRecord)
NOTHING(cudaEventRecordWithFlags)
NOTHING(cudaEventSynchronize)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaLibraryGetKernel)
NOTHING(cudaLibraryLoadData)
NOTHING(cudaLibraryUnload)
NOTHING(cudaMemPoolDestroy)
NOTHING(cudaMemPoolSetAttribute)
NOTHING(cudaMemPoolTrimTo)
NOTHING(cudaMemcpyFromSymbol)
NOTHING(cudaStreamBeginCapture)
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamSynchronize)
NOTHING(cudaStreamWaitEvent)
#endif

#ifdef CUBLAS
int cublasCreate_v2(void **handle) { *handle = malloc(64); return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { return "CUBLAS_STATUS"; }
const char *cublasGetStatusString(int status) { return "a status of cuBLAS"; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasDgeam)
NOTHING(cublasDgemmBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasDgemm_v2)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasGemmBatchedEx)
NOTHING(cublasGemmEx)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasScopy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSgeam)
NOTHING(cublasSgemmBatched)
NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasSgemm_v2)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
NOTHING(cublasSscal_v2)
#endif

#ifdef CUBLASLT
int cublasLtCreate(void **handle) { *handle = malloc(64); return 0; }
NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmul)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoGetHeuristic)
NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulDescCreate)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceCreate)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutCreate)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransform)
NOTHING(cublasLtMatrixTransformDescCreate)
NOTHING(cublasLtMatrixTransformDescDestroy)
#endif

#ifdef CUDA
static int context(void **at) { *at = (void *)64; return 0; }
int cuCtxGetCurrent(void **at) { return context(at); }
int cuStreamGetCtx(void *stream, void **at) { return context(at); }
int cuGetErrorString(int error, const char **text) { *text = "an error of the driver"; return 0; }
NOTHING(cuCtxCreate_v4)
NOTHING(cuCtxDestroy_v2)
NOTHING(cuCtxPopCurrent_v2)
NOTHING(cuCtxPushCurrent_v2)
NOTHING(cuCtxSetCurrent)
NOTHING(cuDestroyExternalMemory)
NOTHING(cuDestroyExternalSemaphore)
NOTHING(cuExternalMemoryGetMappedBuffer)
NOTHING(cuImportExternalMemory)
NOTHING(cuImportExternalSemaphore)
NOTHING(cuInit)
NOTHING(cuSignalExternalSemaphoresAsync)
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cuWaitExternalSemaphoresAsync)
#endif

#ifdef NVML
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = architecture() / 10;
    *minor = architecture() % 10;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)64; return index ? 2 : 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    memory->total = memory->free = (unsigned long long)said("FAKE_CUDA_MB", 100000) << 20;
    memory->reserved = memory->used = 0;
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    strncpy(name, "a device that computes nothing", size);
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned size) { strncpy(version, "580.65.06", size); return 0; }
const char *nvmlErrorString(int error) { return "an error of NVML"; }
NOTHING(nvmlInit_v2)
NOTHING(nvmlShutdown)
#endif

#ifdef CURAND
NOTHING(no_function)
#endif

#ifdef CUDNN
static int handle(void **at) { *at = calloc(1, 64); return 0; }
int cudnnCreate(void **cudnn) { return handle(cudnn); }
int cudnnBackendCreateDescriptor(int type, void **descriptor) { return handle(descriptor); }
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return 0; }
// One of everything, and all numbers are zero.
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t asked, int64_t *count, void *values) {
    if (count) *count = 1;
    if (asked > 0 && values && type != 15) memset(values, 0, type == 2 || type == 1 || type == 3 || type == 5 ? 8 : 4);
    return 0;
}
size_t cudnnGetVersion(void) { return 91300; }
const char *cudnnGetErrorString(int status) { return "a status of cuDNN"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }
int cudnnGetReductionIndicesSize(void *c, void *r, void *a, void *b, size_t *size) { *size = 0; return 0; }
int cudnnGetReductionWorkspaceSize(void *c, void *r, void *a, void *b, size_t *size) { *size = 0; return 0; }
int cudnnGetConvolutionForwardWorkspaceSize(void *c, void *x, void *w, void *d, void *y, int how, size_t *size) { *size = 0; return 0; }
NOTHING(cudnnActivationForward)
NOTHING(cudnnAddTensor)
NOTHING(cudnnBackendExecute)
NOTHING(cudnnBackendFinalize)
NOTHING(cudnnBackendSetAttribute)
NOTHING(cudnnBatchNormalizationForwardInference)
NOTHING(cudnnBatchNormalizationForwardTraining)
NOTHING(cudnnConvolutionBiasActivationForward)
NOTHING(cudnnConvolutionForward)
int cudnnCreateActivationDescriptor(void **at) { return handle(at); }
int cudnnCreateConvolutionDescriptor(void **at) { return handle(at); }
int cudnnCreateDropoutDescriptor(void **at) { return handle(at); }
int cudnnCreateFilterDescriptor(void **at) { return handle(at); }
int cudnnCreateLRNDescriptor(void **at) { return handle(at); }
int cudnnCreatePoolingDescriptor(void **at) { return handle(at); }
int cudnnCreateRNNDataDescriptor(void **at) { return handle(at); }
int cudnnCreateRNNDescriptor(void **at) { return handle(at); }
int cudnnCreateReduceTensorDescriptor(void **at) { return handle(at); }
int cudnnCreateTensorDescriptor(void **at) { return handle(at); }
NOTHING(cudnnDeriveBNTensorDescriptor)
NOTHING(cudnnDestroy)
NOTHING(cudnnDestroyActivationDescriptor)
NOTHING(cudnnDestroyConvolutionDescriptor)
NOTHING(cudnnDestroyDropoutDescriptor)
NOTHING(cudnnDestroyFilterDescriptor)
NOTHING(cudnnDestroyLRNDescriptor)
NOTHING(cudnnDestroyPoolingDescriptor)
NOTHING(cudnnDestroyRNNDataDescriptor)
NOTHING(cudnnDestroyRNNDescriptor)
NOTHING(cudnnDestroyReduceTensorDescriptor)
NOTHING(cudnnDestroyTensorDescriptor)
NOTHING(cudnnDropoutGetStatesSize)
NOTHING(cudnnFindConvolutionForwardAlgorithmEx)
NOTHING(cudnnGetConvolutionForwardAlgorithm_v7)
NOTHING(cudnnGetRNNTempSpaceSizes)
NOTHING(cudnnGetRNNWeightParams)
NOTHING(cudnnGetStream)
NOTHING(cudnnGetTensorNdDescriptor)
NOTHING(cudnnLRNCrossChannelForward)
NOTHING(cudnnPoolingForward)
NOTHING(cudnnRNNForward)
NOTHING(cudnnReduceTensor)
NOTHING(cudnnSetActivationDescriptor)
NOTHING(cudnnSetConvolutionGroupCount)
NOTHING(cudnnSetConvolutionMathType)
NOTHING(cudnnSetConvolutionNdDescriptor)
NOTHING(cudnnSetDropoutDescriptor)
NOTHING(cudnnSetFilterNdDescriptor)
NOTHING(cudnnSetLRNDescriptor)
NOTHING(cudnnSetPoolingNdDescriptor)
NOTHING(cudnnSetRNNDataDescriptor)
NOTHING(cudnnSetRNNDescriptor_v8)
NOTHING(cudnnSetReduceTensorDescriptor)
NOTHING(cudnnSetStream)
NOTHING(cudnnSetTensorNdDescriptor)
NOTHING(cudnnSoftmaxForward)
#endif
