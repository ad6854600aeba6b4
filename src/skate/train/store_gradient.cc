// The operator SkateStore: writes gradients into memory that ranks share, as soon as
// backward has made them. Compiled at first use: see tensorflow_operator.py.
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;

REGISTER_OP("SkateStore")
    .Attr("T: list(type)")
    .Attr("addresses: list(int)")
    .Attr("nbytes: list(int)")
    .Input("gradients: T")
    .Output("stored: int64")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    });

class SkateStore : public tensorflow::OpKernel {
 public:
  explicit SkateStore(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("addresses", &addresses_));
    OP_REQUIRES_OK(context, context->GetAttr("nbytes", &nbytes_));
  }

  void Compute(OpKernelContext* context) override {
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto data = context->input(i).tensor_data();
      OP_REQUIRES(context, static_cast<std::int64_t>(data.size()) == nbytes_[i],
                  absl::InvalidArgumentError(absl::StrCat(
                      "a gradient of ", data.size(), " bytes, expected ", nbytes_[i])));
      std::memcpy(reinterpret_cast<void*>(addresses_[i]), data.data(), data.size());
    }
    tensorflow::Tensor* stored = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &stored));
    stored->scalar<std::int64_t>()() = context->num_inputs();
  }

 private:
  std::vector<std::int64_t> addresses_;
  std::vector<std::int64_t> nbytes_;
};

REGISTER_KERNEL_BUILDER(Name("SkateStore").Device(tensorflow::DEVICE_CPU), SkateStore);

}  // namespace
