// The operator SkateStore: writes a gradient into memory that ranks share, as soon as
// backward has made it. Compiled at first use: see tensorflow_operator.py.
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;

REGISTER_OP("SkateStore")
    .Attr("T: type")
    .Attr("address: int")
    .Attr("nbytes: int")
    .Input("gradient: T")
    .Output("stored: int64")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    });

class SkateStore : public tensorflow::OpKernel {
 public:
  explicit SkateStore(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("address", &address_));
    OP_REQUIRES_OK(context, context->GetAttr("nbytes", &nbytes_));
  }

  void Compute(OpKernelContext* context) override {
    const auto data = context->input(0).tensor_data();
    const auto size = static_cast<std::int64_t>(data.size());
    OP_REQUIRES(context, size == nbytes_,
                absl::InvalidArgumentError(absl::StrCat(
                    "a gradient of ", size, " bytes, expected ", nbytes_)));
    std::memcpy(reinterpret_cast<void*>(address_), data.data(), data.size());
    tensorflow::Tensor* stored = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &stored));
    stored->scalar<std::int64_t>()() = nbytes_;
  }

 private:
  std::int64_t address_ = 0;
  std::int64_t nbytes_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("SkateStore").Device(tensorflow::DEVICE_CPU), SkateStore);

}  // namespace
