// Threads for hosts that offer none, such as the interpreters that load delegates.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "bnnedge/conv.h"

namespace bnnedge {

// The caller is one of the threads; the others start at the first job that can use them. Between jobs they spin for a
// while, as the next operator mostly comes within microseconds, and then sleep. Several interpreters may share a pool:
// while one of them runs a job, the jobs of the others run on their own threads. All threads round as the caller does,
// because some interpreters flush denormal numbers to zero, and a result must not depend on the thread that computes
// it.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) : threads_(threads) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  Parallel AsParallel() { return {Run, this, threads_}; }

 private:
  using Piece = void (*)(void* context, int64_t i);

  static void Run(void* host, int64_t count, Piece piece, void* context);
  void RunJob(int64_t count, Piece piece, void* context);
  void StartWorkers();
  void Work();
  bool TakePieces(bool adopts_float_mode);
  bool HasPieces() const;
  void WaitForPieces();
  void AwaitDone(int64_t count);

  const int threads_;
  std::mutex owner_;  // held by the interpreter whose job is running
  std::vector<std::thread> workers_;

  std::atomic<uint64_t> ticket_{0};
  std::atomic<Piece> piece_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint64_t> float_mode_{0};
  std::atomic<int64_t> done_{0};

  std::mutex sleep_;
  std::condition_variable wake_, finished_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
};

}  // namespace bnnedge
