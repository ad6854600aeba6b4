#include "node.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <new>

namespace skate {
namespace {

constexpr i64 kWatchdogFirst = 1'000'000;
// Without memory for a message: until somebody may have read others.
constexpr i64 kShortPause = 10'000'000;

}  // namespace

Node::Node(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool)
    : home(session_fd, segment_fd, supervisor_fd, self, is_pool),
      waits(*this),
      mail(*this),
      arenas(*this),
      store(*this),
      views(*this),
      inventory(*this),
      spiller(*this),
      estate(*this),
      objects(*this),
      lending(*this),
      answers(*this),
      readiness(*this),
      watches(*this),
      tasks(*this),
      backlog(*this),
      endings(*this),
      cancels(*this),
      results(*this),
      actors(*this),
      detached(*this),
      streams(*this),
      work(*this),
      cpus(*this),
      interrupts(*this),
      deaths(*this),
      explainer(*this) {
  home.link.on_kept([this] { ring_doorbell(home.me->housekeeper_doorbell); });
  work.set_state(ProcState::kRunning);
  housekeeper_ = std::thread([this] { housekeep(); });
}

Node::~Node() { close(); }

std::string_view Node::why_it_ended() const {
  // Pairs with the release store in Control::say_why.
  const bool said = home.session->has_reason.load(std::memory_order_acquire) != 0;
  return said ? text_in(home.session->reason) : std::string_view{};
}

void Node::close() {
  if (in_forked_child()) {
    // Its threads are the parent's, and so is all that it shares. Their handles may
    // name threads of the child's by now: they are forgotten, not detached.
    std::construct_at(&housekeeper_);
    return;
  }
  home.stopping.store(true);
  waits.kick_and_wake();
  ring_doorbell(home.me->housekeeper_doorbell);
  {
    std::lock_guard lock(home.mu);
    waits.tell_followers();
    waits.wake_resting();
  }
  if (housekeeper_.joinable()) housekeeper_.join();
  spiller.stop();
  home.link.close();
}

void Node::send_last_calls(i64 deadline_ns) {
  Lock lock(home.mu);
  const auto all_sent = [&] { return !actors.asks_for_addresses(); };
  while (waits.wait(lock, deadline_ns, all_sent) == WaitResult::kInterrupted) {
  }
}

void Node::catch_up() {
  std::lock_guard lock(home.mu);
  mail.drain_fully();
}

bool Node::needs_attention() const {
  return tasks.lack_dependencies() || actors.asks_for_addresses() ||
         answers.others_wait() || backlog.has_any() || deaths.has_let_go() ||
         mail.has_unread() || mail.has_unsaid() || mail.has_chains() ||
         tasks.has_late() || endings.has_more() || actors.are_held_back() ||
         home.link.has_kept();
}

void Node::handle(Peer& from, Message message, Reader reader) {
  switch (message) {
    case Message::kResult:
      endings.take_result(reader, from.id);
      break;
    case Message::kItem:
      streams.take_item(reader, from.id);
      break;
    case Message::kItemsRead: {
      const ObjectId task_id = reader.pod<ObjectId>();
      const u64 attempt = reader.pod<u64>();
      streams.items_read(task_id, attempt, reader.pod<u64>());
      break;
    }
    case Message::kCancel: {
      const ObjectId task_id = reader.pod<ObjectId>();
      const u64 attempt = reader.pod<u64>();
      work.cancel_here(task_id, attempt, reader.pod<u8>());
      break;
    }
    case Message::kCancelObject: {
      Task* task = tasks.pending(reader.pod<ObjectId>());
      const u8 flags = reader.pod<u8>();
      if (task != nullptr)
        cancels.cancel_task(task, (flags & kForce) != 0, (flags & kRecursive) != 0);
      break;
    }
    case Message::kResultTaken:
      if (!from.untaken.empty()) {
        const std::vector<ObjectId> ids = std::move(from.untaken.front());
        from.untaken.pop_front();
        for (ObjectId id : ids) objects.drop(id);
      }
      break;
    case Message::kCall: {
      const std::string_view call = reader.rest();
      work.receive(reinterpret_cast<const std::byte*>(call.data()), call.size(),
                   from.id);
      break;
    }
    case Message::kExplain:
      explainer.answer(reader, from.id);
      break;
    case Message::kExplained:
      explainer.take_answer(reader);
      break;
    case Message::kReserveActor:
    case Message::kActorReserved:
    case Message::kDropActor:
    case Message::kAdoptActor:
    case Message::kActorAdopted:
      detached.handle(message, reader, from.id);
      break;
    case Message::kBorrow:
      lending.add_borrow(reader.pod<ObjectId>(), from.id);
      break;
    case Message::kReturn:
      lending.end_borrow(reader.pod<ObjectId>(), from.id);
      break;
    case Message::kSubscribe: {
      const ObjectId id = reader.pod<ObjectId>();
      answers.answer(id, from.id, reader.pod<u8>() != 0);
      break;
    }
    case Message::kNotYet:
      answers.is_not_yet(reader.pod<ObjectId>());
      break;
    case Message::kValue: {
      const ObjectId id = reader.pod<ObjectId>();
      Value value;
      reader.value(value);
      answers.take_answer(id, std::move(value));
      break;
    }
    case Message::kFreeBlock: {
      const Location block = reader.pod<Location>();
      if (block.proc == home.self || home.is_driver()) store.free_block(block);
      break;
    }
    case Message::kGiveBlock: {
      const Handing handing = reader.pod<Handing>();
      if (handing.block.proc == home.self || home.is_driver())
        results.tell_arena(handing);
      break;
    }
    case Message::kSpill:
      spiller.take_wish(reader.pod<u64>(), from.id);
      break;
    case Message::kRoom:
      waits.changed();
      break;
    case Message::kEndActor:
      work.end_soon();
      waits.changed();
      break;
    case Message::kProcessDied:
      deaths.process_died(reader);
      break;
    case Message::kForgetProcess: {
      const ProcId dead = reader.pod<ProcId>();
      deaths.forget_later(dead, reader.pod<Forget>());
      break;
    }
    case Message::kLeaseGranted: {
      const ObjectId task_id = reader.pod<ObjectId>();
      tasks.lease_granted(task_id, reader.pod<ProcId>());
      break;
    }
    case Message::kLeaseRefused: {
      const ObjectId task_id = reader.pod<ObjectId>();
      tasks.lease_refused(task_id, reader.pod<i64>());
      break;
    }
  }
}

// Does what cannot wait for the process's own threads to enter skate: answers other
// processes, releases tasks whose inputs have come, refills the queue, and rings again
// where a wake-up might have been lost.
void Node::housekeep() {
  pthread_setname_np(pthread_self(), "skate-keeper");
  // Workers end with their supervisor; the driver must notice by itself.
  const i64 idle_pause = (home.is_driver() ? 3 : 10) * kSlice;
  i64 pause = kWatchdogFirst;
  ProcEntry& me = *home.me;
  while (!home.stopping) {
    u32 level = kAsleep;
    bool led = false;
    const bool unsaid = home.link.flush();
    bool untidy = false;
    bool is_short = false;
    {
      Lock lock(home.mu);
      try {
        mail.collect();  // first: there may be no memory for what follows
        if (!waits.has_leader()) mail.drain();
        mail.collect();
        actors.flush_held_back();
        if (tasks.has_late() || endings.has_more()) tasks.look_again();
        backlog.flush();
        waits.announce();  // some may have failed
        if (deaths.has_let_go()) deaths.look_at_dead();
        if (home.is_driver()) estate.look_after();
        untidy = store.tidy();
        if (cpus.should_wake_others()) cpus.wake_for_work();
        interrupts.again();  // a millisecond ago the moment was bad
      } catch (const std::bad_alloc&) {
        // What could not be begun stays where it was: unread, or in its line.
        is_short = true;
      }
      if (needs_attention() && !waits.has_leader()) level = kAsleepAny;
      const bool busy =
          backlog.queue_waits() || needs_attention() || untidy || is_short;
      pause = busy ? std::min(pause * 2, kSlice) : idle_pause;
      if (interrupts.has_postponed() || unsaid) pause = kWatchdogFirst;
      led = waits.has_leader();
      // Under the lock: a thread that submits a task meanwhile changes what concerns
      // us.
      me.housekeeper_doorbell.store(level, std::memory_order_seq_cst);
    }
    if (me.inbox_summary.load(std::memory_order_seq_cst) == 0 && !home.stopping) {
      const FutexResult woken = futex_wait(me.housekeeper_doorbell, level, pause);
      if (woken == FutexResult::kWoken) pause = kWatchdogFirst;
    } else if (led || is_short || pause > kWatchdogFirst) {
      // A leader drains it, or we do at once; do not circle while it gets there. It may
      // sleep: not every message wakes it.
      ring_doorbell(me.doorbell);
      futex_wait(me.housekeeper_doorbell, level,
                 is_short ? kShortPause : kWatchdogFirst);
    }
    me.housekeeper_doorbell.store(kAwake, std::memory_order_seq_cst);
    // Somebody sends without end: the program's threads get the lock in between.
    if (me.inbox_summary.load(std::memory_order_relaxed) != 0)
      std::this_thread::yield();
    if (!waits.look_for_supervisor()) {
      waits.kick_and_wake();
      std::lock_guard lock(home.mu);
      waits.tell_followers();
      waits.wake_resting();
      return;
    }
  }
}

}  // namespace skate
