// edgeqkv::CachedAttention: the attention kernel on the runtime's own thread pool.
//
//   inputs   q, k, v (none: the value is a slice of k's rows), position int64 [1], k_cache, k_scale, v_cache, v_scale
//            (scales only with int8, v_* only with v; what is absent is an empty name). Shapes: edgeqkv_operators.h
//   outputs  out [T, n_head * value_dim], and k_cache, k_scale, v_cache, v_scale after the step
//   ints     n_head, n_kv_head; and value_start, value_dim, key_dim, scale_split, 0 where they are absent
//   float    softmax_scale, 0 where it is absent
//
// A cache output that is bound to its input's memory is updated in place; otherwise the whole cache is copied first.
#include "op.h"

namespace edgeqkv::ort {
namespace {

constexpr const char* kName = "CachedAttention";
enum Input { kQ, kK, kV, kPosition, kCaches, kInputs = kCaches + 4 };  // kCaches: k_cache, k_scale, v_cache, v_scale
enum Output { kOut, kCachesOut, kOutputs = kCachesOut + 4 };

struct Kernel {
  Api api;
  int32_t dtype, n_thread;
  CachedAttentionAttributes node;
};

OrtStatus* compute(void* op_kernel, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(op_kernel);
  const Api& api = kernel.api;
  Tensor in[kInputs];
  for (size_t i = 0; i < kInputs; i++) RETURN_IF_ERROR(read_input(api, context, i, in[i]));
  Tensor* caches = in + kCaches;
  edgeqkv_attention_args args = {};
  const CachedAttentionShapes shapes = {in[kQ].shape(),
                                        in[kK].shape(),
                                        in[kV].shape(),
                                        {caches[0].shape(), caches[1].shape(), caches[2].shape(), caches[3].shape()}};
  if (const char* why = set_shape(kernel.node, shapes, kernel.dtype, args)) return fail(api, kName, why);
  RETURN_IF_ERROR(read_position(api, kName, in[kPosition], args));
  const int64_t n_token = args.n_token;

  constexpr const char* kMissing = "CachedAttention: an output of the cache is missing";
  char* out = nullptr;
  const int64_t out_dims[] = {n_token, int64_t(args.n_head) * args.value_dim};
  RETURN_IF_ERROR(make_output(api, context, kOut, {out_dims, 2}, kMissing, &out));
  for (size_t i = 0; i < 4; i++) {
    if (!caches[i].value) continue;
    const int32_t dtype = i % 2 ? int32_t(EDGEQKV_FP32) : kernel.dtype;  // every other one is of scales
    RETURN_IF_ERROR(make_cache_output(api, context, kCachesOut + i, dtype, kMissing, caches[i]));
  }
  if (n_token == 0) return nullptr;

  args.q = in[kQ].as<float>();
  args.k = in[kK].as<float>();
  args.v = in[kV].as<float>();
  args.k_cache = caches[0].data;
  args.k_scale = caches[1].as<float>();
  args.v_cache = caches[2].data;
  args.v_scale = caches[3].as<float>();
  args.out = reinterpret_cast<float*>(out);
  Pool pool = {&api, context, nullptr};
  return status_of(api, kName, pool, edgeqkv_attention(&args, run_on_pool, &pool, kernel.n_thread));
}

OrtStatus* create(const CustomOp* base, const OrtApi* table, const OrtKernelInfo* info, void** kernel) {
  const Op& op = *static_cast<const Op*>(base);
  Kernel made = {Api(table), op.dtype, op.n_thread, {}};
  const Api& api = made.api;
  CachedAttentionAttributes& node = made.node;
  RETURN_IF_ERROR(api.KernelInfoGetAttribute_int64()(info, "n_head", &node.n_head));
  RETURN_IF_ERROR(api.KernelInfoGetAttribute_int64()(info, "n_kv_head", &node.n_kv_head));
  read_optional(api, api.KernelInfoGetAttribute_int64(), info, "key_dim", &node.key_dim);
  read_optional(api, api.KernelInfoGetAttribute_int64(), info, "value_start", &node.value_start);
  read_optional(api, api.KernelInfoGetAttribute_int64(), info, "value_dim", &node.value_dim);
  read_optional(api, api.KernelInfoGetAttribute_int64(), info, "scale_split", &node.scale_split);
  read_optional(api, api.KernelInfoGetAttribute_float(), info, "softmax_scale", &node.softmax_scale);
  if (node.n_kv_head < 1 || node.n_head < 1 || node.n_head > INT32_MAX || node.n_head % node.n_kv_head)
    return fail(api, kName, "n_head is not a multiple of n_kv_head");
  return keep(kName, made, kernel);
}

}  // namespace

Op cached_attention(int32_t dtype, int32_t n_thread) {
  Op op = make_op(kName, n_thread);
  const int element = element_type(dtype);
  const Port caches[] = {{element}, {kFloat, kOptional}, {element, kOptional}, {kFloat, kOptional}};
  op.inputs[kQ] = op.inputs[kK] = {kFloat};
  op.inputs[kV] = {kFloat, kOptional};
  op.inputs[kPosition] = {kInt64};
  op.outputs[kOut] = {kFloat};
  for (int i = 0; i < 4; i++) op.inputs[kCaches + i] = op.outputs[kCachesOut + i] = caches[i];
  op.n_input = kInputs, op.n_output = kOutputs;
  op.dtype = dtype;
  set_kernel<Kernel>(op, create, compute);
  return op;
}

}  // namespace edgeqkv::ort
