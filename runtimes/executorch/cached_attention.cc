// edgeqkv::cached_attention.out for ExecuTorch: the attention kernel as an operator, on the runtime's own pool of threads.
//
//   q [1, T, n_head * head_dim], k and v [1, T, n_kv_head * head_dim] float32 (v None: the value is the key),
//   position int64 [1], count int64 [1] (how many of the T tokens there are; None: all),
//   then the cache as the kernel's header lays it out, with a leading 1 as batch, updated in place:
//   k_cache, k_scale, v_cache, v_scale (scales only with int8, v_* only with v; what is absent is None);
//   out like q, zero from token `count` on; and out once more, as every .out operator returns it.
//
// Its twin for ONNX Runtime is runtimes/onnx/custom_op.cc; export/executorch.py declares it to the exporter.
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/log.h>

#include <cstring>
#include <initializer_list>

#include "edgeqkv_attention.h"
#include "threadpool.h"

namespace edgeqkv::executorch {
namespace {

using ::executorch::aten::ScalarType;
using ::executorch::aten::Tensor;
using ::executorch::runtime::Error;
using ::executorch::runtime::EValue;
using ::executorch::runtime::Kernel;
using ::executorch::runtime::KernelRuntimeContext;
using ::executorch::runtime::Span;

enum Argument { kQ, kK, kV, kPosition, kCount, kCaches, kOut = kCaches + 4, kArguments };  // kCaches: k, its scale, v, its scale

void run_on_pool(void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
  auto one = [&](size_t i) { task(arg, int32_t(i)); };
  static_cast<::executorch::extension::threadpool::ThreadPool*>(context)->run(one, size_t(n));
}

bool has_shape(const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape) {
  if (tensor.scalar_type() != type || tensor.dim() != int64_t(shape.size())) return false;
  int i = 0;
  for (const int64_t size : shape)
    if (tensor.size(i++) != size) return false;
  return true;
}

// False when the tensors are not what the comment above says, or do not fit the cache.
bool attend(const Tensor* const t[kArguments], Error& error) {
  error = Error::InvalidArgument;
  const Tensor &q = *t[kQ], &k_cache = *t[kCaches], &out = *t[kOut];
  const ScalarType type = k_cache.scalar_type();
  const bool scaled = type == ScalarType::Char;
  if (q.dim() != 3 || k_cache.dim() != 4) return false;
  const int64_t n_token = q.size(1), n_kv = k_cache.size(1), capacity = k_cache.size(2), head_dim = k_cache.size(3);
  if (n_kv < 1 || head_dim < 1 || q.size(2) < 1 || q.size(2) % (head_dim * n_kv) != 0) return false;
  for (const Tensor* x : {&q, &out})
    if (!has_shape(*x, ScalarType::Float, {1, n_token, q.size(2)})) return false;
  for (const Tensor* x : {t[kK], t[kV]})
    if (x && !has_shape(*x, ScalarType::Float, {1, n_token, n_kv * head_dim})) return false;
  for (const Tensor* x : {t[kPosition], t[kCount]})
    if (x && !has_shape(*x, ScalarType::Long, {1})) return false;
  for (int i = 0; i < 4; i++) {
    const Tensor* cache = t[kCaches + i];
    const bool scale = i % 2, wanted = (!scale || scaled) && (i < 2 || t[kV]);
    if (wanted != (cache != nullptr)) return false;
    if (wanted && !(scale ? has_shape(*cache, ScalarType::Float, {1, n_kv, capacity})
                          : has_shape(*cache, type, {1, n_kv, capacity, head_dim})))
      return false;
  }
  const int64_t position = *t[kPosition]->const_data_ptr<int64_t>();
  const int64_t count = t[kCount] ? *t[kCount]->const_data_ptr<int64_t>() : n_token;
  if (count < 1 || count > n_token || position < 0 || position > capacity - count) {
    ET_LOG(Error, "%lld tokens at position %lld do not fit a cache of %lld", (long long)count, (long long)position, (long long)capacity);
    return false;
  }

  auto data = [&](int i) { return t[i] ? t[i]->mutable_data_ptr() : nullptr; };
  edgeqkv_attention_args args = {};
  args.n_head = int32_t(q.size(2) / head_dim);
  args.n_kv_head = int32_t(n_kv);
  args.head_dim = int32_t(head_dim);
  args.capacity = int32_t(capacity);
  args.position = int32_t(position);
  args.n_token = int32_t(count);
  args.dtype = scaled ? EDGEQKV_INT8 : type == ScalarType::Half ? EDGEQKV_FP16 : EDGEQKV_FP32;
  if (!scaled && type != ScalarType::Half && type != ScalarType::Float) return false;
  args.q = static_cast<const float*>(data(kQ));
  args.k = static_cast<const float*>(data(kK));
  args.v = static_cast<const float*>(data(kV));
  args.k_cache = data(kCaches);
  args.k_scale = static_cast<float*>(data(kCaches + 1));
  args.v_cache = data(kCaches + 2);
  args.v_scale = static_cast<float*>(data(kCaches + 3));
  args.out = static_cast<float*>(data(kOut));
  auto* pool = ::executorch::extension::threadpool::get_threadpool();
  const size_t n_thread = pool ? pool->get_thread_count() : 1;
  const int32_t status = edgeqkv_attention(&args, n_thread > 1 ? run_on_pool : nullptr, pool, int32_t(n_thread));
  std::memset(args.out + count * q.size(2), 0, size_t((n_token - count) * q.size(2)) * sizeof(float));
  if (status == EDGEQKV_NO_MEMORY) error = Error::MemoryAllocationFailed;
  return status == EDGEQKV_OK;
}

void cached_attention_out(KernelRuntimeContext& context, Span<EValue*> arguments) {
  if (arguments.size() < kArguments) return context.fail(Error::InvalidArgument);
  const Tensor* tensors[kArguments] = {};
  for (int i = 0; i < kArguments; i++) {
    const EValue& value = *arguments[size_t(i)];
    const bool optional = i == kV || i == kCount || (i > kCaches && i < kOut);
    if (value.isTensor())
      tensors[i] = &value.toTensor();
    else if (!optional || !value.isNone())
      return context.fail(Error::InvalidArgument);
  }
  Error error = Error::Ok;
  if (!attend(tensors, error)) context.fail(error);
}

const Error registered = register_kernel(Kernel("edgeqkv::cached_attention.out", cached_attention_out));

}  // namespace
}  // namespace edgeqkv::executorch
