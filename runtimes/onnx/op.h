// What all operators for ONNX Runtime are made of: tensors, the runtime's pool of threads as the kernels' parallel_for, and an
// operator described by data.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#include "edgeqkv_operators.h"
#include "ort_api.h"

namespace edgeqkv::ort {

#define RETURN_IF_ERROR(call)                      \
  do {                                             \
    if (OrtStatus* status = (call)) return status; \
  } while (0)

struct Port {
  int type;  // ONNXTensorElementDataType
  int characteristic = kRequired;
};

// An operator, which may use n_thread threads.
struct Op : CustomOp {
  const char* name;
  Port inputs[10], outputs[5];
  size_t n_input, n_output;
  int32_t n_thread;
  int32_t dtype;  // of the cache
};

Op cached_attention(int32_t dtype, int32_t n_thread);
Op latent_attention(int32_t dtype, int32_t n_thread);

// The part that is the same in every operator.
inline Op make_op(const char* name, int32_t n_thread) {
  Op op = {};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* base) { return static_cast<const Op*>(base)->name; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const CustomOp* base) { return static_cast<const Op*>(base)->n_input; };
  op.GetInputType = [](const CustomOp* base, size_t i) { return static_cast<const Op*>(base)->inputs[i].type; };
  op.GetInputCharacteristic = [](const CustomOp* base, size_t i) {
    return static_cast<const Op*>(base)->inputs[i].characteristic;
  };
  op.GetOutputTypeCount = [](const CustomOp* base) { return static_cast<const Op*>(base)->n_output; };
  op.GetOutputType = [](const CustomOp* base, size_t i) { return static_cast<const Op*>(base)->outputs[i].type; };
  op.GetOutputCharacteristic = [](const CustomOp* base, size_t i) {
    return static_cast<const Op*>(base)->outputs[i].characteristic;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return INT32_MAX; };
  op.name = name;
  op.n_thread = n_thread;
  return op;
}

struct Tensor {
  OrtValue* value = nullptr;
  char* data = nullptr;
  int64_t dims[8] = {};
  size_t n_dim = 0;

  Shape shape() const { return {value ? dims : nullptr, n_dim}; }
  size_t elements() const {
    size_t n = 1;
    for (size_t i = 0; i < n_dim; i++) n *= size_t(dims[i]);
    return n;
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// A tensor without a value where an optional input is not there.
inline OrtStatus* read_input(const Api& api, const OrtKernelContext* context, size_t index, Tensor& tensor) {
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetInput()(context, index, &value));
  if (!value) return nullptr;
  tensor.value = const_cast<OrtValue*>(value);
  RETURN_IF_ERROR(api.GetTensorMutableData()(tensor.value, reinterpret_cast<void**>(&tensor.data)));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api.GetTensorTypeAndShape()(value, &info));
  OrtStatus* status = api.GetDimensionsCount()(info, &tensor.n_dim);
  if (!status && tensor.n_dim > sizeof tensor.dims / sizeof *tensor.dims)
    status = api.CreateStatus()(kInvalidArgument, "a tensor has too many dimensions");
  if (!status) status = api.GetDimensions()(info, tensor.dims, tensor.n_dim);
  api.ReleaseTensorTypeAndShapeInfo()(info);
  return status;
}

// The place of output `index`; `missing` is the error where the node leaves it out.
inline OrtStatus* make_output(const Api& api, OrtKernelContext* context, size_t index, Shape shape, const char* missing,
                              char** data) {
  OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetOutput()(context, index, shape.dims, shape.n_dim, &value));
  if (!value) return api.CreateStatus()(kInvalidArgument, missing);
  return api.GetTensorMutableData()(value, reinterpret_cast<void**>(data));
}

// An output that a cache input has after the step: where it is bound to other memory than its input's, the whole cache is
// copied there first. `cache` then is the output.
inline OrtStatus* make_cache_output(const Api& api, OrtKernelContext* context, size_t index, int32_t dtype, const char* missing,
                                    Tensor& cache) {
  char* after = nullptr;
  RETURN_IF_ERROR(make_output(api, context, index, cache.shape(), missing, &after));
  const size_t bytes = dtype == EDGEQKV_FP32 ? 4 : dtype == EDGEQKV_FP16 ? 2 : 1;
  if (after != cache.data) std::memcpy(after, cache.data, cache.elements() * bytes);
  cache.data = after;
  return nullptr;
}

// ONNX Runtime's pool, and what went wrong with it.
struct Pool {
  const Api* api;
  const OrtKernelContext* context;
  OrtStatus* status;
};

// edgeqkv_parallel_for on a Pool.
inline void run_on_pool(void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
  struct Loop {
    void (*task)(void*, int32_t);
    void* arg;
  };
  Pool& pool = *static_cast<Pool*>(context);
  Loop loop = {task, arg};
  auto one = [](void* user, size_t i) {
    auto* l = static_cast<Loop*>(user);
    l->task(l->arg, int32_t(i));
  };
  // As many batches as items: an idle thread takes the next item, whichever that is.
  OrtStatus* status = pool.api->KernelContext_ParallelFor()(pool.context, one, size_t(n), size_t(n), &loop);
  if (status && !pool.status)
    pool.status = status;
  else if (status)
    pool.api->ReleaseStatus()(status);
}

// An error of operator `name`.
inline OrtStatus* fail(const Api& api, const char* name, const char* why, int code = kInvalidArgument) {
  char text[128] = "";
  std::strncat(text, name, sizeof text - 1);
  std::strncat(text, ": ", sizeof text - std::strlen(text) - 1);
  std::strncat(text, why, sizeof text - std::strlen(text) - 1);
  return api.CreateStatus()(code, text);
}

// What became of a call to a kernel that ran on `pool`.
inline OrtStatus* status_of(const Api& api, const char* name, const Pool& pool, int32_t error) {
  if (pool.status) return pool.status;
  if (error == EDGEQKV_OK) return nullptr;
  if (error == EDGEQKV_NO_MEMORY) return fail(api, name, "out of memory", kFail);
  if (error == EDGEQKV_NO_ISA) return fail(api, name, "EDGEQKV_ISA names an instruction set that is not here");
  return fail(api, name, "the kernel does not take these shapes");
}

// An attribute that a node may leave out stays as it is.
template <class Get, class T>
void read_optional(const Api& api, Get get, const OrtKernelInfo* info, const char* name, T* value) {
  T read = *value;
  if (OrtStatus* absent = get(info, name, &read))
    api.ReleaseStatus()(absent);
  else
    *value = read;
}

// The number of rows that the cache holds before n_token more; an error where those do not fit.
template <class Args>
OrtStatus* read_position(const Api& api, const char* name, const Tensor& tensor, Args& args) {
  if (tensor.elements() != 1) return fail(api, name, "position has a wrong shape");
  const int64_t position = *tensor.as<int64_t>();
  if (position < 0 || position > int64_t(args.capacity) - args.n_token)
    return fail(api, name, "the tokens do not fit the cache");
  args.position = int32_t(position);
  return nullptr;
}

// A kernel of an operator's own kind, for the runtime to keep.
template <class Kernel>
OrtStatus* keep(const char* name, const Kernel& made, void** kernel) {
  *kernel = new (std::nothrow) Kernel(made);
  return *kernel ? nullptr : fail(made.api, name, "out of memory", kFail);
}

template <class Kernel, class Create, class Compute>
void set_kernel(Op& op, Create create, Compute compute) {
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

constexpr int element_type(int32_t dtype) { return dtype == EDGEQKV_INT8 ? kInt8 : dtype == EDGEQKV_FP16 ? kFloat16 : kFloat; }

}  // namespace edgeqkv::ort
