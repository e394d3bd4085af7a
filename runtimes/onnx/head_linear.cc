// edgeqkv::HeadLinear: one int8 matrix for each head, on the runtime's own thread pool.
//
//   inputs   x [T, n_head * n_in] float32, weight int8 [n_head, n_out, n_in], scale float32 [n_head, n_out, n_in / block]
//   output   y [T, n_head * n_out]
//
// No attributes: the shapes say everything.
#include <cstring>
#include <new>

#include "op.h"

namespace edgeqkv::ort {
namespace {

enum Input { kX, kWeight, kScale, kInputs };

struct Kernel {
  Api api;
  int32_t n_thread;
};

OrtStatus* refuse(const Api& api, const char* why) {
  char text[128] = "HeadLinear: ";
  std::strncat(text, why, sizeof text - std::strlen(text) - 1);
  return api.CreateStatus()(kInvalidArgument, text);
}

OrtStatus* compute(void* op_kernel, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(op_kernel);
  const Api& api = kernel.api;
  Tensor in[kInputs];
  for (size_t i = 0; i < kInputs; i++) RETURN_IF_ERROR(read_input(api, context, i, in[i]));
  edgeqkv_head_linear_args args = {};
  if (const char* why = set_shape(in[kX].shape(), in[kWeight].shape(), in[kScale].shape(), args)) return refuse(api, why);
  char* y = nullptr;
  const int64_t dims[] = {args.n_token, int64_t(args.n_head) * args.n_out};
  RETURN_IF_ERROR(make_output(api, context, 0, {dims, 2}, "HeadLinear: its output is missing", &y));
  if (args.n_token == 0) return nullptr;
  args.x = in[kX].as<float>();
  args.weight = in[kWeight].as<int8_t>();
  args.scale = in[kScale].as<float>();
  args.y = reinterpret_cast<float*>(y);
  Pool pool = {&api, context, nullptr};
  const int32_t error = edgeqkv_head_linear(&args, run_on_pool, &pool, kernel.n_thread);
  if (pool.status) return pool.status;
  if (error == EDGEQKV_NO_MEMORY) return api.CreateStatus()(kFail, "HeadLinear: out of memory");
  if (error == EDGEQKV_NO_ISA) return refuse(api, "EDGEQKV_ISA names an instruction set that is not here");
  return error ? refuse(api, "the kernel does not take these shapes") : nullptr;
}

OrtStatus* create(const CustomOp* base, const OrtApi* table, const OrtKernelInfo*, void** kernel) {
  const Api api(table);
  *kernel = new (std::nothrow) Kernel{api, static_cast<const Op*>(base)->n_thread};
  return *kernel ? nullptr : api.CreateStatus()(kFail, "HeadLinear: out of memory");
}

}  // namespace

Op head_linear(int32_t n_thread) {
  Op op = make_op("HeadLinear", n_thread);
  op.inputs[kX] = op.inputs[kScale] = op.outputs[0] = {kFloat};
  op.inputs[kWeight] = {kInt8};
  op.n_input = kInputs, op.n_output = 1;
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace edgeqkv::ort
