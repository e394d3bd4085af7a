/* The part of ONNX Runtime's C API that the custom operators and edgeqkv-run call, declared by us so that the sdist builds on a
 * board with nothing but a compiler. The API is append-only: a function keeps its place in the table, and GetApi(version)
 * returns a table that begins with all of that version's functions. ort_api_check.cc holds this file against the official
 * header.
 *
 * Enums are int here, as they are in the C ABI of every platform that ONNX Runtime ships for.
 */
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtApi;
struct OrtStatus;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtIoBinding;

namespace edgeqkv::ort {

constexpr uint32_t kApiVersion = 17;                             // the first with KernelContext_ParallelFor
constexpr int kFail = 1, kInvalidArgument = 2;                   // OrtErrorCode
constexpr int kFloat = 1, kInt8 = 3, kInt64 = 7, kFloat16 = 10;  // ONNXTensorElementDataType
constexpr int kRequired = 0, kOptional = 1;                      // OrtCustomOpInputOutputCharacteristic

// X(place in the table, name, signature)
#define EDGEQKV_ORT_FUNCTIONS(X)                                                                            \
  X(0, CreateStatus, OrtStatus*(int, const char*))                                                          \
  X(2, GetErrorMessage, const char*(const OrtStatus*))                                                      \
  X(3, CreateEnv, OrtStatus*(int, const char*, OrtEnv**))                                                   \
  X(7, CreateSession, OrtStatus*(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**))       \
  X(10, CreateSessionOptions, OrtStatus*(OrtSessionOptions**))                                              \
  X(17, DisableMemPattern, OrtStatus*(OrtSessionOptions*))                                                  \
  X(24, SetIntraOpNumThreads, OrtStatus*(OrtSessionOptions*, int))                                          \
  X(25, SetInterOpNumThreads, OrtStatus*(OrtSessionOptions*, int))                                          \
  X(26, CreateCustomOpDomain, OrtStatus*(const char*, OrtCustomOpDomain**))                                 \
  X(27, CustomOpDomain_Add, OrtStatus*(OrtCustomOpDomain*, const CustomOp*))                                \
  X(28, AddCustomOpDomain, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*))                              \
  X(39, CreateRunOptions, OrtStatus*(OrtRunOptions**))                                                      \
  X(46, RunOptionsSetTerminate, OrtStatus*(OrtRunOptions*))                                                 \
  X(47, RunOptionsUnsetTerminate, OrtStatus*(OrtRunOptions*))                                               \
  X(49, CreateTensorWithDataAsOrtValue,                                                                     \
    OrtStatus*(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**))               \
  X(51, GetTensorMutableData, OrtStatus*(OrtValue*, void**))                                                \
  X(61, GetDimensionsCount, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*))                          \
  X(62, GetDimensions, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t))                      \
  X(65, GetTensorTypeAndShape, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**))                    \
  X(69, CreateCpuMemoryInfo, OrtStatus*(int, int, OrtMemoryInfo**))                                         \
  X(85, KernelInfoGetAttribute_float, OrtStatus*(const OrtKernelInfo*, const char*, float*))                \
  X(86, KernelInfoGetAttribute_int64, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*))              \
  X(90, KernelContext_GetInput, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**))              \
  X(91, KernelContext_GetOutput, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)) \
  X(92, ReleaseEnv, void(OrtEnv*))                                                                          \
  X(93, ReleaseStatus, void(OrtStatus*))                                                                    \
  X(94, ReleaseMemoryInfo, void(OrtMemoryInfo*))                                                            \
  X(95, ReleaseSession, void(OrtSession*))                                                                  \
  X(96, ReleaseValue, void(OrtValue*))                                                                      \
  X(97, ReleaseRunOptions, void(OrtRunOptions*))                                                            \
  X(99, ReleaseTensorTypeAndShapeInfo, void(OrtTensorTypeAndShapeInfo*))                                    \
  X(100, ReleaseSessionOptions, void(OrtSessionOptions*))                                                   \
  X(101, ReleaseCustomOpDomain, void(OrtCustomOpDomain*))                                                   \
  X(130, AddSessionConfigEntry, OrtStatus*(OrtSessionOptions*, const char*, const char*))                   \
  X(133, RunWithBinding, OrtStatus*(OrtSession*, const OrtRunOptions*, const OrtIoBinding*))                \
  X(134, CreateIoBinding, OrtStatus*(OrtSession*, OrtIoBinding**))                                          \
  X(135, ReleaseIoBinding, void(OrtIoBinding*))                                                             \
  X(136, BindInput, OrtStatus*(OrtIoBinding*, const char*, const OrtValue*))                                \
  X(137, BindOutput, OrtStatus*(OrtIoBinding*, const char*, const OrtValue*))                               \
  X(237, HasSessionConfigEntry, OrtStatus*(const OrtSessionOptions*, const char*, int*))                    \
  X(238, GetSessionConfigEntry, OrtStatus*(const OrtSessionOptions*, const char*, char*, size_t*))          \
  X(274, KernelContext_ParallelFor, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*))

struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  // What newer versions add is read only from operators that say they are newer.
};

struct ApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// Calls into the table: Api(table).GetDimensions()(info, dims, n).
class Api {
 public:
  explicit Api(const OrtApi* table) : table_(reinterpret_cast<void* const*>(table)) {}

#define EDGEQKV_ORT_ACCESSOR(place, name, ...) \
  auto name() const { return reinterpret_cast<Pointer<__VA_ARGS__>>(table_[place]); }
  EDGEQKV_ORT_FUNCTIONS(EDGEQKV_ORT_ACCESSOR)
#undef EDGEQKV_ORT_ACCESSOR

 private:
  template <class Function>
  using Pointer = Function*;

  void* const* table_;
};

}  // namespace edgeqkv::ort
