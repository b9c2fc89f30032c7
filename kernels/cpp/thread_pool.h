// Threads for hosts that offer none, such as the interpreters that load delegates.
#pragma once

#include <atomic>
#include <cstdint>

#include "bnnedge/conv.h"

namespace bnnedge {

// The caller is one of the threads; the others start at the first job that can use them. Between jobs they spin for a
// while, as the next operator mostly comes within microseconds, and then sleep. Several interpreters may share a pool:
// while one of them runs a job, the jobs of the others run on their own threads. All threads round as the caller does,
// because some interpreters flush denormal numbers to zero, and a result must not depend on the thread that computes
// it. A process that is forked from one with a pool has none of its threads: there the pool starts new ones.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  Parallel AsParallel() { return {Run, this, threads_}; }

 private:
  class Team;
  using Piece = void (*)(void* context, int64_t i);

  static void Run(void* host, int64_t count, Piece piece, void* context);
  Team* TeamOfThisProcess();

  const int threads_;
  std::atomic<Team*> team_;
};

}  // namespace bnnedge
