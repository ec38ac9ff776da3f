package limit

import "time"

// keepOff takes a moment, about a microsecond and a half. It is for who has lost
// the race for a word to another processor: were both to go on, the word would go
// back and forth between them, which takes longer than all else that a call does.
// In the meantime the other can make some dozens of calls with it.
func keepOff() {
	for range 32 {
		_ = time.Now() // something that takes time everywhere, and touches nothing
	}
}
