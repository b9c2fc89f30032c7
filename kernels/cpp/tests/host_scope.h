// Says whether the tests' own code runs on a thread, or a plug-in, since only the allocations of the latter count.
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
