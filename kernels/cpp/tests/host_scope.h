// Who runs on a thread: the tests' own code, or a plug-in. What the former allocates is not the latter's doing.
#pragma once

namespace bnnedge {

inline thread_local bool in_host = false;

class HostScope {
 public:
  explicit HostScope(bool in = true) : before_(in_host) { in_host = in; }
  HostScope(const HostScope&) = delete;
  HostScope& operator=(const HostScope&) = delete;
  ~HostScope() { in_host = before_; }

 private:
  const bool before_;
};

}  // namespace bnnedge
