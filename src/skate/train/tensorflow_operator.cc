// The operators SkateStore, which writes tensors into memory that ranks share, and
// SkateLoad, which reads variables from there. Compiled at first use: see
// tensorflow_operator.py.
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

absl::Status ScalarShape(tensorflow::shape_inference::InferenceContext* c) {
  c->set_output(0, c->Scalar());
  return absl::OkStatus();
}

REGISTER_OP("SkateStore")
    .Attr("T: list(type)")
    .Attr("addresses: list(int)")
    .Attr("nbytes: list(int)")
    .Input("tensors: T")
    .Output("stored: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape);

REGISTER_OP("SkateLoad")
    .Attr("N: int >= 1")
    .Attr("addresses: list(int)")
    .Attr("nbytes: list(int)")
    .Input("variables: N * resource")
    .Output("loaded: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape);

// One part of the shared memory for each input.
class SharedOp : public tensorflow::OpKernel {
 public:
  explicit SharedOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("addresses", &addresses_));
    OP_REQUIRES_OK(context, context->GetAttr("nbytes", &nbytes_));
  }

  void Compute(OpKernelContext* context) override {
    for (int i = 0; i < context->num_inputs(); ++i) {
      auto* part = reinterpret_cast<char*>(addresses_[i]);
      OP_REQUIRES_OK(context, Copy(context, i, part, nbytes_[i]));
    }
    Tensor* count = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &count));
    count->scalar<std::int64_t>()() = context->num_inputs();
  }

 protected:
  virtual absl::Status Copy(OpKernelContext* context, int input, char* part,
                            std::int64_t bytes) = 0;

  static absl::Status CheckSize(std::size_t found, std::int64_t expected) {
    if (static_cast<std::int64_t>(found) == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a tensor of ", found, " bytes, expected ", expected));
  }

 private:
  std::vector<std::int64_t> addresses_;
  std::vector<std::int64_t> nbytes_;
};

class SkateStore : public SharedOp {
 public:
  using SharedOp::SharedOp;

 protected:
  absl::Status Copy(OpKernelContext* context, int input, char* part,
                    std::int64_t bytes) override {
    const auto data = context->input(input).tensor_data();
    const absl::Status fits = CheckSize(data.size(), bytes);
    if (fits.ok()) std::memcpy(part, data.data(), data.size());
    return fits;
  }
};

class SkateLoad : public SharedOp {
 public:
  using SharedOp::SharedOp;

 protected:
  absl::Status Copy(OpKernelContext* context, int input, char* part,
                    std::int64_t bytes) override {
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    absl::Status status = tensorflow::LookupResource(
        context, tensorflow::HandleFromInput(context, input), &variable);
    if (!status.ok()) return status;
    tensorflow::mutex_lock lock(*variable->mu());
    Tensor* value = variable->tensor();
    status = CheckSize(value->TotalBytes(), bytes);
    if (!status.ok()) return status;
    if (!value->RefCountIsOne()) {  // somebody holds the value as it was
      Tensor fresh;
      status = context->allocate_temp(value->dtype(), value->shape(), &fresh);
      if (!status.ok()) return status;
      *value = fresh;
    }
    std::memcpy(value->data(), part, bytes);
    return absl::OkStatus();
  }
};

REGISTER_KERNEL_BUILDER(Name("SkateStore").Device(tensorflow::DEVICE_CPU), SkateStore);
REGISTER_KERNEL_BUILDER(Name("SkateLoad").Device(tensorflow::DEVICE_CPU), SkateLoad);

}  // namespace
