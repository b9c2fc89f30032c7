// The operators of the ONNX domain "bnnedge", version 1, for ONNX Runtime's CPU provider, as
// the ONNX target of the exporter defines them. A file also carries them as functions of standard operators. ONNX
// Runtime keeps a node that a provider has a kernel for, and inlines the function of any other node.
#include <cstdio>
#include <deque>
#include <mutex>

#include "runtime.h"

#if defined(_WIN32)
#define BNNEDGE_EXPORT extern "C" __declspec(dllexport)
#else
#define BNNEDGE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bnnedge::ort {
namespace {

constexpr int kDomainVersion = 1;

const Operator& Self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

// `version` is that of the runtime's interface. Of all that versions above kApiVersion add, only outputs in place of
// inputs are used.
void Complete(const Api* api, uint32_t version, Operator* op) {
  op->api = api;
  op->version = version;
  op->get_name = [](const CustomOp* self) { return Self(self).name.c_str(); };
  op->get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  op->get_input_type = [](const CustomOp* self, size_t index) { return Self(self).inputs[index]; };
  op->get_input_count = [](const CustomOp* self) { return Self(self).inputs.size(); };
  op->get_output_type = [](const CustomOp* self, size_t index) { return Self(self).outputs[index]; };
  op->get_output_count = [](const CustomOp* self) { return Self(self).outputs.size(); };
  op->get_input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  // A node may leave out the first of two outputs.
  op->get_output_characteristic = [](const CustomOp* self, size_t index) {
    return index + 1 < Self(self).outputs.size() ? kOptional : kRequired;
  };
  op->get_input_memory_type = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op->create_kernel_v2 = [](const CustomOp* self, const Api* runtime, const KernelInfo* info, void** kernel) {
    return Guard(runtime, [&] { *kernel = Self(self).create(Self(self), info).release(); });
  };
  op->kernel_compute_v2 = [](void* kernel, KernelContext* context) {
    Kernel& self = *static_cast<Kernel*>(kernel);
    return Guard(self.site().api, [&] { self.Compute(context); });
  };
  op->kernel_destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op->infer_output_shape = [](const CustomOp* self, ShapeContext* context) {
    return Guard(Self(self).api, [&] { Self(self).infer_shape(Self(self), context); });
  };
  op->get_may_inplace = op->in_place;
  op->release_may_inplace = [](int*, int*) {};
  op->get_start_version = [](const CustomOp*) { return kDomainVersion; };
  op->get_end_version = [](const CustomOp*) { return kDomainVersion; };
}

// The version of the interface whose fields the runtime may read. It follows from the runtime's own version, such as
// 1.17, because a runtime that is asked for an interface that it lacks complains on the console.
uint32_t InterfaceVersion(const ApiBase* runtime) {
  int major = 0, minor = 0;
  const bool is_known = std::sscanf(runtime->get_version(), "%d.%d", &major, &minor) == 2;
  return is_known && (major > 1 || minor >= static_cast<int>(kInPlaceApiVersion)) ? kInPlaceApiVersion : kApiVersion;
}

// The operators that are registered with one copy of the runtime in this process, which keeps pointers to them.
struct Registration {
  Registration(const ApiBase* runtime, const Api* table) : base(runtime) {
    Check(table->create_custom_op_domain(kDomain, &domain));
    for (const auto& list : {FloatOperators(), PackedOperators(), StemOperators()}) {
      operators.insert(operators.end(), list.begin(), list.end());
    }
    for (Operator& op : operators) {
      Complete(table, InterfaceVersion(runtime), &op);
      Check(table->custom_op_domain_add(domain, &op));
    }
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  const ApiBase* base;
  std::deque<Operator> operators;
  OpDomain* domain = nullptr;
};

void Register(SessionOptions* options, const ApiBase* base, const Api* api) {
  static std::mutex mutex;
  // It is never destroyed, because at the end of a process the runtime may outlive this library's destructors.
  static auto* registrations = new std::deque<Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  Registration* own = nullptr;
  for (Registration& each : *registrations) {
    if (each.base == base) own = &each;
  }
  if (own == nullptr) own = &registrations->emplace_back(base, api);
  Check(api->add_custom_op_domain(options, own->domain));
}

}  // namespace
}  // namespace bnnedge::ort

BNNEDGE_EXPORT bnnedge::ort::Status* RegisterCustomOps(bnnedge::ort::SessionOptions* options,
                                                       const bnnedge::ort::ApiBase* base) {
  const bnnedge::ort::Api* api = base->get_api(bnnedge::ort::kApiVersion);
  if (api == nullptr) {
    const std::string message = std::string("bnnedge needs ONNX Runtime 1.17 or newer, found ") + base->get_version();
    return base->get_api(1)->create_status(bnnedge::ort::kFail, message.c_str());
  }
  return bnnedge::ort::Guard(api, [&] { bnnedge::ort::Register(options, base, api); });
}
