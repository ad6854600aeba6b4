#include "backlog.hpp"

#include <cstring>
#include <new>

#include "node.hpp"

namespace skate {

Backlog::Backlog(Node& node)
    : node_(node),
      home_(node.home),
      queue_(reinterpret_cast<QueueMemory*>(node.home.segment.data() + kQueueOffset)) {}

void Backlog::add(Task* task) {
  ready_.push_back(task);
  if (ready_.size() == 1) flush();
}

void Backlog::add_first(Task* task) {
  ready_.push_front(task);
  flush();
}

bool Backlog::take_out(Task* task, std::optional<u32>& claimer) {
  if (list_of(*task).erase(task)) return true;
  const auto is_its = [&](const std::byte* payload) {
    return Reader(payload, sizeof(ObjectId)).pod<ObjectId>() == task->header.task_id;
  };
  return task->queued &&
         queue_.withdraw(task->position, home_.self.index, is_its, claimer);
}

bool Backlog::may_look_at_all() {
  constexpr i64 kPause = 20'000'000;
  const i64 now = now_ns();
  if (now < look_at_all_) return false;
  look_at_all_ = now + kPause;
  return true;
}

void Backlog::flush() {
  bool pushed = false;
  bool failed = false;
  // Where messages lack room, bodies must not take more: see Store::is_crowded.
  const auto may_go_on = [&] { return queue_.has_room() && !node_.store.is_crowded(); };
  const auto push = [&](Task* task, const std::string* bytes) {
    list_of(*task).erase(task);
    task->lacking = 0;
    if (bytes == nullptr) {
      node_.endings.fail_for_room(task);
      failed = true;
      return;
    }
    const auto position = queue_.push(bytes->data(), static_cast<u32>(bytes->size()));
    task->position = *position;
    task->queued = true;
    pushed = true;
  };
  try {
    // In order: the room that one waits for is not given to the next, but for a look at
    // all of them now and then, as the room may come only when one of those has run.
    Task* next = nullptr;
    for (Task* task = long_ones_.front(); task != nullptr && may_go_on(); task = next) {
      next = WaitingTasks::next(task);
      const bool may_fit = node_.store.may_hold(task->lacking);
      const std::string* const bytes = may_fit ? encode(task, kCellPayload) : nullptr;
      if (bytes != nullptr || !may_find_room())
        push(task, bytes);
      else if (task == long_ones_.front() && !may_look_at_all())
        break;
    }
    while (!ready_.empty() && may_go_on()) {
      Task* const task = ready_.front();
      const std::string* const bytes =
          encode(task, kCellPayload, /*may_have_block=*/long_ones_.empty());
      if (bytes == nullptr && (!long_ones_.empty() || may_find_room())) {
        // Those behind may need no room, and what gives it back may wait for them.
        ready_.erase(task);
        task->lacking = lacking_;
        long_ones_.push_back(task);
      } else {
        push(task, bytes);
      }
    }
  } catch (const std::bad_alloc&) {
    // It stays there, and the housekeeper tries again.
  }
  // Those that wait for what has failed; whoever runs the ready ones comes to them.
  if (failed && !node_.tasks.is_running_ready()) node_.tasks.run_ready();
  if (!pushed) return;
  if (!submitter_) {
    submitter_ = true;
    // Pairs with the loads of who looks for work: the task is there first.
    home_.session->submitters[home_.self.index / 64].fetch_or(
        1ULL << (home_.self.index % 64), std::memory_order_seq_cst);
  }
  node_.cpus.wake_for_work(Cpus::Wake::kUnlessBusy);
}

std::optional<u32> Backlog::place_in_queue(const Task& task) const {
  return task.queued ? queue_.ahead_of(task.position) : std::nullopt;
}

u32 Backlog::place_in_backlog(const Task& task) const {
  const WaitingTasks& waiting = task.lacking != 0 ? long_ones_ : ready_;
  u32 ahead = kQueueCells;
  for (const Task* other = waiting.front(); other != nullptr && other != &task;
       other = WaitingTasks::next(other))
    ++ahead;
  return ahead;
}

bool Backlog::leaves_room(const std::string& call) const {
  return call.size() <= kMaxRecord || node_.store.can_answer_after(call.size());
}

bool Backlog::may_find_room() const { return bodies_ != 0 || node_.mail.has_chains(); }

void Backlog::free_body(Task* task) {
  if (!task->has_body) return;
  node_.store.free_block(task->body);
  task->has_body = false;
  --bodies_;
}

const std::string* Backlog::encode(Task* task, std::size_t limit, bool may_have_block) {
  free_body(task);
  // While it waits for room it is not copied each time that somebody looks.
  lacking_ = task->args.size();
  if (task->args.size() > limit && !(may_have_block && node_.store.may_hold(lacking_)))
    return nullptr;
  task->header.args_size = static_cast<u32>(task->args.size());
  task->header.num_deps = static_cast<u32>(task->deps.size());
  task->header.flags &= static_cast<u16>(~(kBodyInBlock | kMayRetry));
  if (task->retries != 0) task->header.flags |= kMayRetry;
  scratch_.clear();
  Writer writer(scratch_);
  writer.pod(task->header);
  scratch_ += task->args;
  for (ObjectId id : task->deps) {
    const Object* object = node_.objects.find(id);
    writer.pod(id);
    writer.value(object == nullptr ? lost_value() : object->value);
  }
  if (scratch_.size() <= limit) return &scratch_;
  const u64 size = scratch_.size() - sizeof(TaskHeader);
  lacking_ = size;
  if (!may_have_block) return nullptr;
  // Past the store's limit too: what is small enough to be here was counted already.
  // Not where messages have their room: only the task's result frees it, a message.
  const auto block = node_.store.allocate_past_limit(size);
  if (!block) return nullptr;
  task->body = *block;
  std::memcpy(node_.store.own_data(task->body), scratch_.data() + sizeof(TaskHeader),
              size);
  task->has_body = true;
  ++bodies_;
  task->header.flags |= kBodyInBlock;
  scratch_.clear();
  writer.pod(task->header);
  writer.pod(task->body);
  return &scratch_;
}

}  // namespace skate
