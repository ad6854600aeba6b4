#include "deaths.hpp"

#include <utility>

#include "node.hpp"

namespace skate {

Deaths::Deaths(Node& node) : node_(node), home_(node.home) {}

WaitResult Deaths::wait_settled(ProcId dying) {
  Lock lock(home_.mu);
  return node_.waits.wait(lock, -1, [&] {
    const Peer& there = node_.mail.peer(dying.index);
    // Its place is given to another only once all have settled its death.
    return there.id == dying ? there.ended : there.id.epoch > dying.epoch;
  });
}

void Deaths::process_died(Reader& reader) {
  const ProcId dead = reader.pod<ProcId>();
  const Failure failure = reader.pod<Failure>();
  const ProcId successor = reader.pod<ProcId>();
  const News news{dead, failure, successor, reader.pod<u8>() != 0};
  if (settle(news))
    confirm(dead);
  else
    postponed_.push_back(news);
}

void Deaths::retry_postponed() {
  // One by one: a message that has no memory ends this, and the others stay.
  for (std::size_t left = postponed_.size(); left != 0; --left) {
    const News news = postponed_.front();
    if (settle(news))
      confirm(news.dead);
    else
      postponed_.push_back(news);
    postponed_.erase(postponed_.begin());
  }
}

// Takes all that it has said, then settles what it was doing for us. False: what it
// said cannot be read now. If there is no memory for a step, the message of this death
// stays unread, and all that was not done is done when it is read again: each step may
// be repeated.
bool Deaths::settle(const News& news) {
  const auto& [dead, failure, successor, place_is_free] = news;
  if (place_is_free) {
    settle_late(news);
    return true;
  }
  Peer& from = node_.mail.meet(dead, false);
  if (from.ended) return true;
  if (!from.settled && !hear_out(from, failure)) return false;
  if (home_.is_driver()) node_.estate.take_over(dead);
  pass_on_unread(dead);
  node_.waits.changed();  // a producer may wait for it to read
  node_.work.caller_died(dead);
  const Failure crash{SystemError::kWorkerCrashed, failure.cause, failure.detail};
  node_.endings.recover(dead, crash);
  // A leased worker says what it begins, and sends the result before it says no more.
  const RunningTask running = running_task(home_.session->procs[dead.index]);
  node_.tasks.sort_flights(from);  // each that is sent again goes to the front
  while (!from.in_flight.empty()) {
    Task* task = from.in_flight.back();
    if (task->route == Task::Route::kActor)
      node_.actors.lose(task, failure, static_cast<bool>(successor));
    else
      node_.endings.lose(task, crash,
                         running.id == task->header.task_id &&
                             running.attempt == task->header.attempt);
  }
  node_.answers.forget_asker(dead);
  node_.actors.process_died({dead, failure, successor});
  node_.detached.maker_died(dead);
  node_.streams.reader_died(dead);
  for (; !from.untaken.empty(); from.untaken.pop_front()) {
    std::vector<ObjectId>& ids = from.untaken.front();
    while (!ids.empty()) {
      const ObjectId id = ids.back();
      ids.pop_back();
      node_.objects.drop(id);
    }
  }
  node_.objects.lose_owner(dead, failure);
  told_[dead].settled = true;
  from.ended = true;
  // It may have been the one that was about to take, or to ask for, what waits here.
  if (node_.backlog.queue_waits()) node_.cpus.wake_for_work();
  return true;
}

// False: some of it cannot be read now.
bool Deaths::hear_out(Peer& from, const Failure& failure) {
  const ProcId dead = from.id;
  if (!node_.mail.drain_ring(from)) return false;
  from.dead = true;
  from.failure = failure;
  Unread unread;
  node_.mail.for_each_unread(from, [&](Message kind, Reader reader) {
    if (kind == Message::kFreeBlock) unread.freed.push_back(reader.pod<Location>());
    if (kind == Message::kGiveBlock) unread.handed.push_back(reader.pod<Handing>());
  });
  if (!unread.freed.empty() || !unread.handed.empty())
    unread_[dead] = std::move(unread);
  node_.mail.close(from);  // gives memory back; from now on it cannot be read again
  from.settled = true;
  return true;
}

// What it had not read about blocks in its arena is for the driver now.
void Deaths::pass_on_unread(ProcId dead) {
  const auto it = unread_.find(dead);
  if (it == unread_.end()) return;
  for (const Handing& handing : it->second.handed)
    if (handing.block.proc == dead) node_.estate.hand(handing);
  for (const Location& block : it->second.freed)
    if (block.proc == dead) node_.estate.free(block);
  unread_.erase(it);  // who is told twice does nothing the second time
}

// Everybody who was there had settled it, so its place may be another's at any moment:
// what the place says is not about the dead. Nor did the dead do anything for a process
// that has begun since; only of its name that may have heard.
void Deaths::settle_late(const News& news) {
  const ProcId dead = news.dead;
  if (told_.contains(dead) && told_[dead].settled) return;
  node_.answers.forget_asker(dead);
  node_.actors.process_died({dead, news.failure, news.successor});
  node_.objects.lose_owner(dead, news.failure);
  told_[dead].settled = true;
}

// Says what is held here of the dead. All that was said here before has been sent: what
// follows from this confirmation, in whatever process, comes after it.
void Deaths::confirm(ProcId dead) {
  Told& told = told_[dead];
  const u8 held = held_of(dead);
  std::string note(view_of(dead));
  note.push_back(static_cast<char>(held | told.acquired));
  home_.link.tell(Note::kConfirm, note);
  told.said = held;  // now: without memory to tell it, it is all told once more
  told.acquired = 0;
}

u8 Deaths::held_of(ProcId proc) const {
  u8 held = 0;
  if (node_.objects.borrows_from(proc)) held |= kHoldsObjects;
  if (blocks_in_.contains(proc)) held |= kHoldsBlocks;
  return held;
}

void Deaths::count_block(ProcId arena) { ++blocks_in_[arena]; }

void Deaths::uncount_block(ProcId arena) {
  const auto it = blocks_in_.find(arena);
  if (it == blocks_in_.end() || --it->second != 0) return;
  blocks_in_.erase(it);
  let_go(arena);
}

void Deaths::come_by(ProcId dead, u8 came, u8 holds) {
  Told& told = told_[dead];
  told.acquired |= came;
  told.said |= holds;
  let_go_ = true;  // it may be gone again by the time somebody looks
}

void Deaths::look_at_dead() {
  const i64 now = now_ns();
  if (now < next_look_) return;
  next_look_ = now + kSlice;
  for (auto& [dead, told] : told_) {
    const u8 held = held_of(dead);
    if ((told.said & ~held) == 0) continue;
    home_.link.tell(Note::kLetGo, view_of(dead));
    told.said &= held;  // now: what lacks the memory to be told is told later
  }
  let_go_ = false;
}

void Deaths::forget_pending() {
  // One by one: without memory for one, that and the others are done the next time.
  for (; !forgets_.empty(); forgets_.erase(forgets_.begin())) {
    const auto [dead, step] = forgets_.front();
    forget(dead, step);
  }
}

// The second step: everybody has drained its rings, so its borrows can go. In time,
// what it owned and its memory follow; see lifecycle.py.
void Deaths::forget(ProcId dead, Forget step) {
  node_.lending.forget_borrower(dead, step != Forget::kBorrows);
  if (step == Forget::kBorrows) return;
  node_.store.free_all_of(dead);
  if (home_.is_driver()) node_.estate.free_all_of(dead);
  if (step != Forget::kAll) return;
  told_.erase(dead);
  node_.arenas.forget(dead);
  if (home_.is_driver()) node_.estate.forget(dead);
}

}  // namespace skate
