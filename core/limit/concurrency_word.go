package limit

import "sync/atomic"

// slotWord is what all callers of a Concurrency share: in one word, the number
// of free slots, whether somebody waits, and how many calls were admitted.
// Counting those in a word of their own would double the cost.
//
// It counts the free slots rather than the taken ones, so that a call needs no
// other word to know whether it fits, and a change of the limit is a change of
// the word, which no call can miss.
type slotWord struct {
	word   atomic.Uint64
	halves atomic.Uint64 // how often the count of calls has come to a half of its field
}

// The fields of the word: free slots and noSlots, which is below zero after the
// limit was lowered; whether somebody waits; the number of calls admitted, whose
// overflow falls off.
const (
	noSlots    = 1 << 31
	slotsMask  = 1<<32 - 1
	someWait   = 1 << 32
	oneCall    = 1 << 33
	halfBits   = 30 // so many bits of the count are zero when it comes to a half
	halfMask   = (1<<halfBits - 1) << 33
	callsShift = 33
)

func freeOf(word uint64) int { return int(int64(word&slotsMask) - noSlots) }

// roomOf is how many slots a call may take at once: none before those who wait.
func roomOf(word uint64) int {
	if word&someWait != 0 {
		return 0
	}
	return freeOf(word)
}

func (s *slotWord) init(limit int) { s.word.Store(noSlots + uint64(limit)) }

func (s *slotWord) free() int    { return freeOf(s.word.Load()) }
func (s *slotWord) room() int    { return roomOf(s.word.Load()) }
func (s *slotWord) waited() bool { return s.word.Load()&someWait != 0 }

// take takes n slots, at least 1, for one call, if there is room.
func (s *slotWord) take(n int) bool {
	for {
		word := s.word.Load()
		if word&someWait != 0 || freeOf(word) < n {
			return false
		}
		if next := word + oneCall - uint64(n); s.word.CompareAndSwap(word, next) {
			if next&halfMask == 0 {
				s.halves.Add(1)
			}
			return true
		}
		keepOff()
	}
}

// takeOrWait is take that otherwise notes that somebody waits. It is called
// with the mutex held.
func (s *slotWord) takeOrWait(n int) (taken bool) {
	for {
		if s.take(n) {
			return true
		}
		if word := s.word.Load(); word&someWait != 0 || freeOf(word) < n && s.word.CompareAndSwap(word, word|someWait) {
			return false
		}
	}
}

// admit books n slots for one who waited. The caller holds the mutex.
func (s *slotWord) admit(n int) {
	if s.word.Add(oneCall-uint64(n))&halfMask == 0 {
		s.halves.Add(1)
	}
}

// clearWaited notes that nobody waits any more. The caller holds the mutex.
func (s *slotWord) clearWaited() { s.word.And(^uint64(someWait)) }

// giveBack gives n slots back, at least 1. It does nothing, and says so, if
// somebody waits for them, or if fewer may be taken.
func (s *slotWord) giveBack(n int, limit *atomic.Int64) bool {
	for {
		word := s.word.Load()
		if word&someWait != 0 || n > int(limit.Load())-freeOf(word) {
			return false
		}
		if s.word.CompareAndSwap(word, word+uint64(n)) {
			return true
		}
		keepOff()
	}
}

// giveBackAtMost gives back n slots, or as many as are taken, and returns how
// many are missing. The caller holds the mutex, so that the limit stays.
func (s *slotWord) giveBackAtMost(n, limit int) (excess int) {
	for {
		word := s.word.Load()
		back := min(n, limit-freeOf(word))
		if s.word.CompareAndSwap(word, word+uint64(back)) {
			return n - back
		}
	}
}

// grow adds so many slots, or takes them away, and returns how many more than
// limit would be free. The caller holds the mutex.
func (s *slotWord) grow(by, limit int) (excess int) {
	for {
		word := s.word.Load()
		excess = max(0, freeOf(word)+by-limit)
		if s.word.CompareAndSwap(word, word+uint64(by-excess)) {
			return excess
		}
	}
}

// admitted is how many calls were admitted. The field for them is as good as a
// wide counter, since every half of it is counted: if the last half is not yet,
// its highest bit says so.
func (s *slotWord) admitted() uint64 {
	halves := s.halves.Load() // before the word, which may only be ahead
	calls := s.word.Load() >> callsShift
	if halves&1 != calls>>halfBits {
		halves++
	}
	return halves<<halfBits + calls&(1<<halfBits-1)
}
