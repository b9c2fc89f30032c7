// A job is published in one atomic ticket, (job number, pieces, next piece), and a piece is taken by advancing it. So a
// thread that wakes late finds no piece left and touches nothing: the caller waits for pieces, never for threads.
//
// `piece_`, `context_` and `float_mode_` are read between a look at the ticket and the exchange that takes a piece.
// They change only while no piece is left, hence a successful exchange proves that the values belong to that ticket.
#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace bnnedge {
namespace {

constexpr int kCountBits = 20;
constexpr uint64_t kCountMask = (uint64_t{1} << kCountBits) - 1;
constexpr std::chrono::microseconds kSpin{50};

// How many forks lie between this process and the one that loaded the library.
std::atomic<int> forks{0};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int counts_forks = pthread_atfork(nullptr, nullptr, [] { ++forks; });
#endif

uint64_t Next(uint64_t ticket) { return ticket & kCountMask; }
uint64_t Count(uint64_t ticket) { return (ticket >> kCountBits) & kCountMask; }
uint64_t Job(uint64_t ticket) { return ticket >> (2 * kCountBits); }

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The rounding mode of the thread and its treatment of denormal numbers.
uint64_t FloatMode() {
#if defined(__x86_64__) || defined(_M_X64)
  return _mm_getcsr();
#elif defined(__aarch64__) && defined(__GNUC__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}

void SetFloatMode(uint64_t mode) {
#if defined(__x86_64__) || defined(_M_X64)
  constexpr uint64_t kStickyFlags = 0x3f;  // exceptions that have happened, which are no part of the mode
  _mm_setcsr(static_cast<unsigned>(mode & ~kStickyFlags));
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#else
  static_cast<void>(mode);
#endif
}

// Whether `ready` became true within kSpin.
template <typename Ready>
bool SpinUntil(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

struct Blocks {
  void (*piece)(void* context, int64_t i);
  void* context;
  int64_t count, block;
};

void RunBlock(void* context, int64_t i) {
  const Blocks& blocks = *static_cast<const Blocks*>(context);
  const int64_t end = std::min(blocks.count, (i + 1) * blocks.block);
  for (int64_t j = i * blocks.block; j < end; ++j) blocks.piece(blocks.context, j);
}

}  // namespace

// The threads of one process and what they share.
class ThreadPool::Team {
 public:
  explicit Team(int threads) : threads_(threads) {}
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  bool IsOfThisProcess() const { return forks_ == forks.load(std::memory_order_relaxed); }
  void Run(int64_t count, Piece piece, void* context);

 private:
  void RunJob(int64_t count, Piece piece, void* context);
  void StartWorkers();
  void Work();
  bool TakePieces(bool adopts_float_mode);
  bool HasPieces() const;
  void WaitForPieces();
  void AwaitDone(int64_t count);

  const int threads_;
  const int forks_ = forks.load(std::memory_order_relaxed);
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

ThreadPool::ThreadPool(int threads) : threads_(threads), team_(new Team(threads)) {}

ThreadPool::~ThreadPool() {
  Team* const team = team_.load();
  // Neither can threads of another process be joined, nor what they may have locked be destroyed.
  if (team->IsOfThisProcess()) delete team;
}

ThreadPool::Team* ThreadPool::TeamOfThisProcess() {
  Team* team = team_.load(std::memory_order_acquire);
  if (team->IsOfThisProcess()) return team;
  auto* const own = new Team(threads_);
  if (team_.compare_exchange_strong(team, own)) return own;
  delete own;  // another thread was faster
  return team;
}

void ThreadPool::Run(void* host, int64_t count, Piece piece, void* context) {
  ThreadPool& pool = *static_cast<ThreadPool*>(host);
  if (count > 1 && pool.threads_ > 1) return pool.TeamOfThisProcess()->Run(count, piece, context);
  for (int64_t i = 0; i < count; ++i) piece(context, i);
}

ThreadPool::Team::~Team() {
  {
    const std::lock_guard<std::mutex> lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Team::Run(int64_t count, Piece piece, void* context) {
  std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
  if (!owner.try_lock()) {
    for (int64_t i = 0; i < count; ++i) piece(context, i);
    return;
  }
  if (count <= static_cast<int64_t>(kCountMask)) {
    RunJob(count, piece, context);
    return;
  }
  const int64_t block = count / static_cast<int64_t>(kCountMask) + 1;
  Blocks blocks{piece, context, count, block};
  RunJob((count + block - 1) / block, RunBlock, &blocks);
}

void ThreadPool::Team::StartWorkers() {
  try {
    workers_.reserve(static_cast<size_t>(threads_ - 1));
    while (workers_.size() < static_cast<size_t>(threads_ - 1)) workers_.emplace_back([this] { Work(); });
  } catch (const std::exception&) {
    // The system gives no more threads. Those that exist do the job, if need be the caller alone.
  }
}

void ThreadPool::Team::RunJob(int64_t count, Piece piece, void* context) {
  if (workers_.empty()) StartWorkers();
  piece_.store(piece, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  float_mode_.store(FloatMode(), std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = Job(ticket_.load(std::memory_order_relaxed)) + 1;
  ticket_.store(job << (2 * kCountBits) | static_cast<uint64_t>(count) << kCountBits);
  // This is sequentially consistent with the look at the ticket in WaitForPieces: one of the two sees the other.
  if (sleepers_.load() > 0) {
    {
      const std::lock_guard<std::mutex> lock(sleep_);
    }
    wake_.notify_all();
  }
  TakePieces(false);
  AwaitDone(count);
}

void ThreadPool::Team::AwaitDone(int64_t count) {
  const auto all = [this, count] { return done_.load() == count; };
  if (SpinUntil(all)) return;
  std::unique_lock<std::mutex> lock(sleep_);
  caller_sleeps_ = true;
  finished_.wait(lock, all);
  caller_sleeps_ = false;
}

bool ThreadPool::Team::HasPieces() const {
  const uint64_t ticket = ticket_.load();
  return Next(ticket) < Count(ticket);
}

// Returns whether it found any.
bool ThreadPool::Team::TakePieces(bool adopts_float_mode) {
  bool any = false;
  uint64_t ticket = ticket_.load();
  while (Next(ticket) < Count(ticket)) {
    const Piece piece = piece_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const uint64_t mode = float_mode_.load(std::memory_order_relaxed);
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    if (adopts_float_mode) SetFloatMode(mode);
    piece(context, static_cast<int64_t>(Next(ticket)));
    any = true;
    // The caller may be gone as soon as the last piece is counted.
    const auto count = static_cast<int64_t>(Count(ticket));
    if (done_.fetch_add(1) + 1 == count && caller_sleeps_.load()) {
      {
        const std::lock_guard<std::mutex> lock(sleep_);
      }
      finished_.notify_one();
    }
    ticket = ticket_.load();
  }
  return any;
}

void ThreadPool::Team::WaitForPieces() {
  const auto ready = [this] { return stop_.load(std::memory_order_relaxed) || HasPieces(); };
  if (SpinUntil(ready)) return;
  std::unique_lock<std::mutex> lock(sleep_);
  ++sleepers_;
  wake_.wait(lock, ready);
  --sleepers_;
}

void ThreadPool::Team::Work() {
  while (!stop_.load()) {
    if (!TakePieces(true)) WaitForPieces();
  }
}

}  // namespace bnnedge
