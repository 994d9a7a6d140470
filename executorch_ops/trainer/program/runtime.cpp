#include "runtime.h"

#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <pthread.h>

#include <atomic>
#include <mutex>

#include "../files/errors.h"

// The header is not part of the SDK, the symbols are.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace mobizo::trainer {
namespace {

namespace runtime = executorch::runtime;

std::mutex g_log_mutex;
int g_captures = 0;
std::string g_first_message;
pal_emit_log_message_method g_forward = nullptr;

std::mutex g_pool_mutex;
int g_pool_users = 0;
std::atomic<bool> g_pool_made{false}, g_threads_lost{false};

std::mutex g_cache_mutex;
int g_cache_users = 0;
uint32_t g_cached_program = 0;

void forked_child() { g_threads_lost = g_pool_made.load(); }

void emit_log_message(et_timestamp_t time, et_pal_log_level_t level, const char* file, const char* function, size_t line,
                      const char* text, size_t length) {
  {
    const std::lock_guard<std::mutex> lock(g_log_mutex);
    if (g_captures > 0) {
      if (g_first_message.empty() && (level == kError || level == kFatal)) g_first_message.assign(text, length);
      if (level != kFatal) return;
    }
  }
  if (g_forward != nullptr) g_forward(time, level, file, function, line, text, length);
}

}  // namespace

void initialize_runtime() {
  static const bool initialized = [] {
    runtime::runtime_init();
    g_forward = runtime::get_pal_impl()->emit_log_message;
    runtime::register_pal(runtime::PalImpl::create(emit_log_message, __FILE__));
    return true;
  }();
  static_cast<void>(initialized);
}

ThreadPoolUse::ThreadPoolUse(int64_t threads) {
  constexpr int64_t kMostThreads = 1024;
  if (threads < 0 || threads > kMostThreads) fail("threads must be from 0 to ", kMostThreads, ", got ", threads);
  check_threads();
  initialize_runtime();
  const LogCapture log;
  const std::lock_guard<std::mutex> lock(g_pool_mutex);
  static const int registered = pthread_atfork(nullptr, nullptr, forked_child);
  static_cast<void>(registered);
  g_pool_made = true;
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr) fail("ExecuTorch's thread pool cannot be made");
  const auto now = static_cast<int64_t>(pool->get_thread_count());
  if (threads != 0 && threads != now) {
    if (g_pool_users > 0) fail("threads must be ", now, " as for the other program of this process, got ", threads);
    if (!pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads))) fail("a pool of ", threads, " threads cannot be made");
  }
  ++g_pool_users;
}

ThreadPoolUse::~ThreadPoolUse() {
  const std::lock_guard<std::mutex> lock(g_pool_mutex);
  --g_pool_users;
}

WeightCacheUse::WeightCacheUse(uint32_t checksum) {
  {
    const std::lock_guard<std::mutex> lock(g_cache_mutex);
    cached_ = g_cache_users == 0 || g_cached_program == checksum;
    if (cached_) {
      g_cached_program = checksum;
      ++g_cache_users;
    }
  }
  // Neither fails: the names are short, and there is room for both.
  static_cast<void>(xnnpack_.set_option("weight_cache_enabled", cached_));
  static_cast<void>(map_.set_options("XnnpackBackend", xnnpack_.view()));
}

WeightCacheUse::~WeightCacheUse() {
  const std::lock_guard<std::mutex> lock(g_cache_mutex);
  if (cached_) --g_cache_users;
}

void check_threads() {
  if (g_threads_lost)
    fail("this process was forked from one that had a program open, and lacks its threads: fork before, or spawn processes");
}

LogCapture::LogCapture() {
  const std::lock_guard<std::mutex> lock(g_log_mutex);
  if (g_captures++ == 0) g_first_message.clear();
}

LogCapture::~LogCapture() {
  const std::lock_guard<std::mutex> lock(g_log_mutex);
  --g_captures;
}

void LogCapture::check(runtime::Error error, const std::string& what) const {
  if (error == runtime::Error::Ok) return;
  const std::lock_guard<std::mutex> lock(g_log_mutex);
  fail(what, ": ", runtime::to_string(error), g_first_message.empty() ? "" : ": ", g_first_message);
}

}  // namespace mobizo::trainer
