// Compiled, never run, when ONNXRUNTIME_INCLUDE_DIR has the official header: every declaration of ort_api.h against it.
#include "onnxruntime_c_api.h"

#include "ort_api.h"

#include <type_traits>

namespace edgeqkv::ort {

// A type with our int for their enums and our structs for theirs, through pointers and functions.
template <class T>
struct Plain {
  using type = typename std::conditional<std::is_enum<T>::value, int, T>::type;
};
template <>
struct Plain<OrtCustomOp> {
  using type = CustomOp;
};
template <class T>
struct Plain<const T> {
  using type = const typename Plain<T>::type;
};
template <class T>
struct Plain<T*> {
  using type = typename Plain<T>::type*;
};
template <class R, class... A>
struct Plain<R(A...)> {
  using type = typename Plain<R>::type(typename Plain<A>::type...);
};
template <class R, class... A>
struct Plain<R(A...) noexcept> : Plain<R(A...)> {};

template <class Theirs, class Ours>
constexpr bool same = std::is_same<typename Plain<Theirs>::type, Ours>::value;

#define CHECK(place, name, ...)                                          \
  static_assert(offsetof(OrtApi, name) == place * sizeof(void*), #name); \
  static_assert(same<decltype(OrtApi::name), std::add_pointer_t<__VA_ARGS__>>, #name);
EDGEQKV_ORT_FUNCTIONS(CHECK)
#undef CHECK

#define CHECK(name)                                                              \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(CustomOp, name), #name); \
  static_assert(same<decltype(OrtCustomOp::name), decltype(CustomOp::name)>, #name);
CHECK(version)
CHECK(CreateKernel)
CHECK(GetName)
CHECK(GetExecutionProviderType)
CHECK(GetInputType)
CHECK(GetInputTypeCount)
CHECK(GetOutputType)
CHECK(GetOutputTypeCount)
CHECK(KernelCompute)
CHECK(KernelDestroy)
CHECK(GetInputCharacteristic)
CHECK(GetOutputCharacteristic)
CHECK(GetInputMemoryType)
CHECK(GetVariadicInputMinArity)
CHECK(GetVariadicInputHomogeneity)
CHECK(GetVariadicOutputMinArity)
CHECK(GetVariadicOutputHomogeneity)
CHECK(CreateKernelV2)
CHECK(KernelComputeV2)
CHECK(InferOutputShapeFn)
CHECK(GetStartVersion)
CHECK(GetEndVersion)
#undef CHECK

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, GetApi));
static_assert(same<decltype(OrtApiBase::GetApi), decltype(ApiBase::GetApi)>);
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ApiBase, GetVersionString));
static_assert(kFail == ORT_FAIL && kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && kInt8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
static_assert(kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 && kFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(kRequired == INPUT_OUTPUT_REQUIRED && kOptional == INPUT_OUTPUT_OPTIONAL);
static_assert(sizeof(ONNXTensorElementDataType) == sizeof(int) && sizeof(OrtErrorCode) == sizeof(int));

}  // namespace edgeqkv::ort
