// edgeqkv::LatentAttention: latent attention with W_K and W_V in int8, on the runtime's own thread pool.
//
//   inputs   q_nope, q_rope, row, position int64 [1], w_k, w_k_scale, w_v, w_v_scale, cache, cache_scale (only with int8).
//            Shapes: edgeqkv_operators.h
//   outputs  out [T, n_head * value_dim], and cache, cache_scale after the step, as CachedAttention's
//   int      scale_split, 0 where it is absent
//   float    softmax_scale
#include "op.h"

namespace edgeqkv::ort {
namespace {

constexpr const char* kName = "LatentAttention";
enum Input { kQNope, kQRope, kRow, kPosition, kWk, kWkScale, kWv, kWvScale, kCache, kCacheScale, kInputs };
enum Output { kOut, kCacheOut, kCacheScaleOut, kOutputs };

struct Kernel {
  Api api;
  int32_t dtype, n_thread;
  int64_t scale_split;
  float softmax_scale;
};

OrtStatus* compute(void* op_kernel, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(op_kernel);
  const Api& api = kernel.api;
  Tensor in[kInputs];
  for (size_t i = 0; i < kInputs; i++) RETURN_IF_ERROR(read_input(api, context, i, in[i]));
  edgeqkv_latent_attention_args args = {};
  const LatentAttentionShapes shapes = {in[kQNope].shape(),   in[kQRope].shape(),   in[kRow].shape(),
                                        in[kWk].shape(),      in[kWkScale].shape(), in[kWv].shape(),
                                        in[kWvScale].shape(), in[kCache].shape(),   in[kCacheScale].shape()};
  if (const char* why = set_shape(kernel.scale_split, shapes, kernel.dtype, args)) return fail(api, kName, why);
  args.scale = kernel.softmax_scale;
  RETURN_IF_ERROR(read_position(api, kName, in[kPosition], args));
  const int64_t n_token = args.n_token;

  constexpr const char* kMissing = "LatentAttention: an output of the cache is missing";
  char* out = nullptr;
  const int64_t out_dims[] = {n_token, int64_t(args.n_head) * args.value_dim};
  RETURN_IF_ERROR(make_output(api, context, kOut, {out_dims, 2}, kMissing, &out));
  RETURN_IF_ERROR(make_cache_output(api, context, kCacheOut, kernel.dtype, kMissing, in[kCache]));
  if (in[kCacheScale].value)
    RETURN_IF_ERROR(make_cache_output(api, context, kCacheScaleOut, EDGEQKV_FP32, kMissing, in[kCacheScale]));
  if (n_token == 0) return nullptr;

  args.q_nope = in[kQNope].as<float>();
  args.q_rope = in[kQRope].as<float>();
  args.row = in[kRow].as<float>();
  args.w_k = in[kWk].as<int8_t>();
  args.w_k_scale = in[kWkScale].as<float>();
  args.w_v = in[kWv].as<int8_t>();
  args.w_v_scale = in[kWvScale].as<float>();
  args.cache = in[kCache].data;
  args.cache_scale = in[kCacheScale].as<float>();
  args.out = reinterpret_cast<float*>(out);
  Pool pool = {&api, context, nullptr};
  return status_of(api, kName, pool, edgeqkv_latent_attention(&args, run_on_pool, &pool, kernel.n_thread));
}

OrtStatus* create(const CustomOp* base, const OrtApi* table, const OrtKernelInfo* info, void** kernel) {
  const Op& op = *static_cast<const Op*>(base);
  Kernel made = {Api(table), op.dtype, op.n_thread, 0, 0};
  const Api& api = made.api;
  read_optional(api, api.KernelInfoGetAttribute_int64(), info, "scale_split", &made.scale_split);
  RETURN_IF_ERROR(api.KernelInfoGetAttribute_float()(info, "softmax_scale", &made.softmax_scale));
  return keep(kName, made, kernel);
}

}  // namespace

Op latent_attention(int32_t dtype, int32_t n_thread) {
  Op op = make_op(kName, n_thread);
  for (int i : {kQNope, kQRope, kRow, kWkScale, kWvScale}) op.inputs[i] = {kFloat};
  op.inputs[kPosition] = {kInt64};
  op.inputs[kWk] = op.inputs[kWv] = {kInt8};
  op.outputs[kOut] = {kFloat};
  op.inputs[kCache] = op.outputs[kCacheOut] = {element_type(dtype)};
  op.inputs[kCacheScale] = op.outputs[kCacheScaleOut] = {kFloat, kOptional};
  op.n_input = kInputs, op.n_output = kOutputs;
  op.dtype = dtype;
  set_kernel<Kernel>(op, create, compute);
  return op;
}

}  // namespace edgeqkv::ort
