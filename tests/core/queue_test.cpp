// The task queue: every task is claimed exactly once, or identifiably lost.
#include "core/queue.hpp"

#include <algorithm>
#include <memory>
#include <random>
#include <set>

#include "check.hpp"

using namespace skate;

namespace {

// As in a TaskHeader, the name comes first.
struct Task {
  ObjectId id;
  u64 number;
  u64 checks[4];
};

ObjectId id_of(u64 number) { return ObjectId::make({7, 9}, 3, number + 1); }

Task task_of(u64 number) {
  Task task{id_of(number), number, {}};
  for (u64 i = 0; i < 4; ++i) task.checks[i] = number * 0x9e3779b97f4a7c15u + i;
  return task;
}

// Checks that the bytes are those of one whole task, and says which.
u64 number_in(const std::byte* payload, u32 size) {
  Task task;
  CHECK(size == sizeof task);
  std::memcpy(&task, payload, sizeof task);
  const Task whole = task_of(task.number);
  CHECK(task.id == whole.id);
  CHECK(std::equal(std::begin(task.checks), std::end(task.checks), whole.checks));
  return task.number;
}

constexpr auto kNoNote = [](const std::byte*, u32) {};

// The number of the task that `proc` gets, or -1.
i64 claim(QueueMemory& queue, u32 proc) {
  std::byte out[kCellPayload];
  const u32 size = claim_task(queue, proc, out, kNoNote);
  return size == 0 ? -1 : static_cast<i64>(number_in(out, size));
}

std::optional<u64> place(QueueProducer& producer, u64 number) {
  const Task task = task_of(number);
  return producer.push(&task, sizeof task);
}

bool push(QueueProducer& producer, u64 number) {
  return place(producer, number).has_value();
}

constexpr u32 kSelf = 40;

// Takes task `number`, pushed to `position`, back. `claimer` says who copies it.
bool withdraw(QueueProducer& producer, u64 position, u64 number,
              std::optional<u32>& claimer) {
  claimer.reset();
  const auto is_it = [&](const std::byte* payload) {
    ObjectId id;
    std::memcpy(&id, payload, sizeof id);
    return id == id_of(number);
  };
  return producer.withdraw(position, kSelf, is_it, claimer);
}

void pause_a_while(std::mt19937& random) {
  const int turns = random() % 64 == 0 ? 4000 : static_cast<int>(random() % 16);
  for (int i = 0; i < turns; ++i) cpu_pause();
}

}  // namespace

TEST(tasks_come_out_in_order_and_a_full_queue_says_so) {
  check::SharedMemory memory(sizeof(QueueMemory));
  QueueMemory& queue = *memory.as<QueueMemory>();
  QueueProducer producer(&queue);
  u64 next = 0;
  u64 expected = 0;
  for (int lap = 0; lap < 3; ++lap) {
    CHECK(claim(queue, 7) == -1);
    CHECK(!producer.maybe_waiting());
    for (u32 i = 0; i < kQueueCells; ++i) CHECK(push(producer, next++));
    CHECK(!push(producer, 0));
    CHECK(producer.maybe_waiting() && queue_maybe_waiting(queue));
    for (u32 i = 0; i < kQueueCells; ++i) {
      CHECK(claim(queue, 7) == static_cast<i64>(expected++));
    }
  }
}

TEST(a_slow_claimer_hides_no_later_task) {
  // While one claimer holds the cell of position 0, the others take all that follow and
  // look at that cell again, now for position kQueueCells.
  check::SharedMemory memory(sizeof(QueueMemory));
  QueueMemory& queue = *memory.as<QueueMemory>();
  QueueProducer producer(&queue);
  for (u64 i = 0; i < kQueueCells; ++i) CHECK(push(producer, i));
  std::byte out[kCellPayload];
  const u32 size = claim_task(queue, 1, out, [&](const std::byte*, u32) {
    for (u64 i = 1; i < kQueueCells; ++i) {
      CHECK(claim(queue, 2) == static_cast<i64>(i));
    }
    CHECK(claim(queue, 2) == -1);
    CHECK(!push(producer, kQueueCells));
  });
  CHECK(number_in(out, size) == 0);
  CHECK(push(producer, kQueueCells));
  CHECK(producer.maybe_waiting());
  CHECK(claim(queue, 2) == kQueueCells);
}

TEST(a_dead_claimers_task_is_found_in_its_cell_and_only_there) {
  check::SharedMemory memory(sizeof(QueueMemory));
  QueueMemory& queue = *memory.as<QueueMemory>();
  QueueProducer producer(&queue);
  for (u64 i = 0; i < 3 * kQueueCells / 2; ++i) {
    CHECK(push(producer, i));
    if (i < kQueueCells) CHECK(claim(queue, 1) == static_cast<i64>(i));
  }
  // Claimed, and never freed: what a claimer leaves that dies before its note.
  for (const u32 proc : {5U, 6U}) {
    const u64 position = queue.head.fetch_add(1);
    queue.cells[position % kQueueCells].state.store(
        cell_state::claimed_at(position, proc));
  }
  std::vector<u64> lost;
  const auto take = [&](const std::byte* payload, u32 size) {
    lost.push_back(number_in(payload, size));
  };
  producer.recover(6, take);
  CHECK(lost == std::vector<u64>{kQueueCells + 1});
  producer.recover(6, take);
  producer.recover(1, take);
  CHECK(lost.size() == 1);
  producer.recover(5, take);
  CHECK(lost.back() == kQueueCells);
  // Both cells are free again, and everything else is still to be had.
  for (u64 i = kQueueCells + 2; i < 3 * kQueueCells / 2; ++i) {
    CHECK(claim(queue, 1) == static_cast<i64>(i));
  }
  for (u64 i = 0; i < kQueueCells; ++i) CHECK(push(producer, i));
  CHECK(!push(producer, 0));
}

TEST(a_task_is_taken_back_by_its_position_unless_somebody_has_it) {
  check::SharedMemory memory(sizeof(QueueMemory));
  QueueMemory& queue = *memory.as<QueueMemory>();
  QueueProducer producer(&queue);
  std::optional<u32> claimer;
  u64 next = 0;
  for (int lap = 0; lap < 5; ++lap) {
    std::vector<u64> positions;
    const u64 first = next;
    for (u32 i = 0; i < kQueueCells; ++i) {
      const std::optional<u64> position = place(producer, next++);
      CHECK(position == next - 1);
      positions.push_back(*position);
    }
    CHECK(!place(producer, next));
    CHECK(claim(queue, 1) == static_cast<i64>(first));
    CHECK(!withdraw(producer, positions[0], first, claimer) && !claimer);
    // While it is being copied, its claimer can be asked for it; then no more.
    std::byte out[kCellPayload];
    claim_task(queue, 23, out, [&](const std::byte*, u32) {
      CHECK(!withdraw(producer, positions[1], first + 1, claimer) && claimer == 23);
    });
    CHECK(!withdraw(producer, positions[1], first + 1, claimer) && !claimer);
    // Every third of the others, once.
    for (u32 i = 2; i < kQueueCells; i += 3) {
      CHECK(!withdraw(producer, positions[i], first + i + 1, claimer) && !claimer);
      CHECK(withdraw(producer, positions[i], first + i, claimer) && !claimer);
      CHECK(!withdraw(producer, positions[i], first + i, claimer) && !claimer);
    }
    for (u32 i = 2; i < kQueueCells; ++i)
      if (i % 3 != 2) CHECK(claim(queue, 1) == static_cast<i64>(first + i));
    CHECK(claim(queue, 1) == -1);
    CHECK(!producer.maybe_waiting());
    // A cell that has another task by now is not that of the old one.
    const std::optional<u64> position = place(producer, next);
    CHECK(position && !withdraw(producer, *position - kQueueCells, next, claimer));
    // Nor has its claimer anything to do with that one.
    claim_task(queue, 23, out, [&](const std::byte*, u32) {
      CHECK(!producer.withdraw(
          *position - kQueueCells, kSelf, [](const std::byte*) { return true; },
          claimer));
      CHECK(!claimer);
    });
    CHECK(number_in(out, sizeof(Task)) == next++);
  }
}

TEST(how_many_are_ahead_of_a_task_is_known_by_its_position) {
  check::SharedMemory memory(sizeof(QueueMemory));
  QueueMemory& queue = *memory.as<QueueMemory>();
  QueueProducer producer(&queue);
  for (u64 lap = 0; lap < 3; ++lap) {
    std::vector<u64> positions;
    for (u64 i = 0; i < kQueueCells; ++i)
      positions.push_back(*place(producer, lap * kQueueCells + i));
    CHECK(producer.ahead_of(positions[0]) == 0);
    CHECK(producer.ahead_of(positions[kQueueCells - 1]) == kQueueCells - 1);
    CHECK(claim(queue, 1) >= 0 && claim(queue, 1) >= 0);
    std::optional<u32> claimer;
    CHECK(withdraw(producer, positions[5], lap * kQueueCells + 5, claimer));
    CHECK(!producer.ahead_of(positions[1]) && !producer.ahead_of(positions[5]));
    CHECK(producer.ahead_of(positions[2]) == 0);
    CHECK(producer.ahead_of(positions[6]) == 3);
    for (u64 i = 3; i < kQueueCells; ++i) CHECK(claim(queue, 1) >= 0);
    CHECK(claim(queue, 1) == -1 && !producer.ahead_of(positions[6]));
  }
}

TEST(a_task_that_is_taken_back_while_others_claim_goes_one_way_only) {
  constexpr u64 kTasks = 20'000 * check::kLoad;
  struct Shared {
    QueueMemory queue;
    std::atomic<u64> gone;
    std::atomic<u8> times[kTasks];
  };
  check::in_both(3, [] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(Shared));
    return [memory](int who) {
      Shared& shared = *memory->as<Shared>();
      if (who != 0) {
        while (shared.gone.load() < kTasks) {
          const i64 number = claim(shared.queue, static_cast<u32>(who));
          if (number < 0) continue;
          shared.times[number].fetch_add(1);
          shared.gone.fetch_add(1);
        }
        return;
      }
      std::mt19937 random(7);
      QueueProducer producer(&shared.queue);
      u64 back = 0;
      for (u64 next = 0; next < kTasks;) {
        if (push(producer, next)) ++next;
        if (random() % 4 != 0) continue;
        // Mostly one of those that are about to be claimed.
        const u64 position = producer.claimed() + random() % 3;
        std::optional<u32> claimer;
        if (position >= next) continue;
        const bool taken_back = withdraw(producer, position, position, claimer);
        CHECK(!claimer || (!taken_back && (*claimer == 1 || *claimer == 2)));
        if (!taken_back) continue;
        shared.times[position].fetch_add(1);
        shared.gone.fetch_add(1);
        ++back;
      }
      while (shared.gone.load() < kTasks) cpu_pause();
      for (const std::atomic<u8>& times : shared.times) CHECK(times.load() == 1);
      CHECK(back > 0);
    };
  });
}

TEST(several_claimers_take_every_task_exactly_once) {
  constexpr int kClaimers = 4;
  constexpr u64 kTasks = 50'000 * check::kLoad;
  struct Shared {
    QueueMemory queue;
    std::atomic<u64> taken;
    std::atomic<u8> times[kTasks];
  };
  check::in_both(kClaimers + 1, [] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(Shared));
    return [memory](int who) {
      Shared& shared = *memory->as<Shared>();
      std::mt19937 random(static_cast<unsigned>(who));
      if (who == 0) {
        QueueProducer producer(&shared.queue);
        for (u64 i = 0; i < kTasks;) {
          i += push(producer, i) ? 1 : 0;
          if (random() % 256 == 0) pause_a_while(random);
        }
        while (shared.taken.load() < kTasks) cpu_pause();
        for (const std::atomic<u8>& times : shared.times) CHECK(times.load() == 1);
        CHECK(claim(shared.queue, 9) == -1);
        return;
      }
      while (shared.taken.load() < kTasks) {
        std::byte out[kCellPayload];
        const u32 size = claim_task(shared.queue, static_cast<u32>(who), out,
                                    [&](const std::byte*, u32) {
                                      // Sometimes so slow that the others go around the
                                      // whole queue meanwhile.
                                      if (random() % 1024 == 0) pause_a_while(random);
                                    });
        if (size == 0) {
          cpu_pause();
          continue;
        }
        shared.times[number_in(out, size)].fetch_add(1);
        shared.taken.fetch_add(1);
      }
    };
  });
}

TEST(a_claimer_killed_at_any_moment_leaves_every_task_done_or_known_to_be_lost) {
  if (!check::kCanFork) return;
  constexpr int kClaimers = 3;
  constexpr u64 kTasks = 30'000 * check::kLoad;
  constexpr u64 kNothing = ~u64{0};
  struct Shared {
    QueueMemory queue;
    std::atomic<u64> noted[kClaimers];  // the task a claimer runs; its directory entry
    std::atomic<u8> done[kTasks];
  };
  check::SharedMemory memory(sizeof(Shared));
  Shared& shared = *memory.as<Shared>();
  const auto claimer = [&](int who) {
    std::byte out[kCellPayload];
    for (;;) {
      const u32 size = claim_task(shared.queue, static_cast<u32>(who), out,
                                  [&](const std::byte* task, u32 bytes) {
                                    shared.noted[who].store(number_in(task, bytes));
                                  });
      if (size == 0) {
        cpu_pause();
        continue;
      }
      shared.done[number_in(out, size)].fetch_add(1);
      shared.noted[who].store(kNothing);
    }
  };
  std::vector<pid_t> children(kClaimers);
  const auto start = [&](int who) {
    shared.noted[who].store(kNothing);
    children[static_cast<std::size_t>(who)] = check::spawn([&, who] { claimer(who); });
  };
  for (int who = 0; who < kClaimers; ++who) start(who);

  QueueProducer producer(&shared.queue);
  std::mt19937 random(3);
  std::vector<u64> again;  // lost tasks, to be pushed once more
  std::set<u64> ever_lost;
  u64 next = 0;
  int kills = 0;
  const auto kill_one = [&] {
    const int who = static_cast<int>(random() % kClaimers);
    const pid_t child = children[static_cast<std::size_t>(who)];
    kill(child, SIGKILL);
    CHECK(!check::reap(child));
    std::set<u64> lost;  // a task may be named by its cell and by the note
    producer.recover(static_cast<u32>(who), [&](const std::byte* payload, u32 size) {
      lost.insert(number_in(payload, size));
    });
    const u64 noted = shared.noted[who].load();
    if (noted != kNothing && shared.done[noted].load() == 0) lost.insert(noted);
    CHECK(lost.size() <= 1);
    for (const u64 number : lost) {
      if (shared.done[number].load() != 0) continue;
      again.push_back(number);
      ever_lost.insert(number);
    }
    start(who);
    ++kills;
  };
  while (next < kTasks || !again.empty()) {
    if (!again.empty()) {
      if (push(producer, again.back())) again.pop_back();
    } else if (push(producer, next)) {
      ++next;
    }
    if (random() % (kTasks / 50) == 0) kill_one();
  }
  // Whatever is still missing is being run, or was lost without a name.
  for (u64 i = 0; i < kTasks; ++i) {
    while (shared.done[i].load() == 0) cpu_pause();
    CHECK(shared.done[i].load() == 1);
  }
  CHECK(kills > 0);
  for (const pid_t child : children) {
    kill(child, SIGKILL);
    check::reap(child);
  }
}

TEST_MAIN()
