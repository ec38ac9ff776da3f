package limit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core/limit"
)

// Five a second, twelve calls 100 ms apart: each of the first five makes room when
// it is a second ago.
func ExampleSlidingLog() {
	inVirtualTime(func() {
		log, _ := limit.NewSlidingLog(limit.SlidingLogConfig{Limit: 5, Window: time.Second})
		start := time.Now()
		for range 12 {
			fmt.Printf("%v:%v ", time.Since(start), log.Allow())
			time.Sleep(100 * time.Millisecond)
		}
	})
	// Output:
	// 0s:true 100ms:true 200ms:true 300ms:true 400ms:true 500ms:false 600ms:false 700ms:false 800ms:false 900ms:false 1s:true 1.1s:true
}

func ExampleNewSlidingLog() {
	_, err := limit.NewSlidingLog(limit.SlidingLogConfig{Limit: 1_000_000, Window: time.Microsecond})
	fmt.Println(err)
	// Output: limit.SlidingLogConfig.Limit: 1000000: must be 1 to 65536
}

// Three logins in ten minutes, wherever these begin.
func ExampleSlidingLog_Take() {
	inVirtualTime(func() {
		logins, _ := limit.NewSlidingLog(limit.SlidingLogConfig{Name: "logins", Limit: 3, Window: 10 * time.Minute})
		for range 4 {
			time.Sleep(time.Minute)
			d := logins.Take(1)
			fmt.Println(d.OK, d.Remaining, d.RetryAfter)
		}
	})
	// Output:
	// true 2 0s
	// true 1 0s
	// true 0 0s
	// false 0 7m0s
}

func ExampleSlidingLog_Wait() {
	inVirtualTime(func() {
		log, _ := limit.NewSlidingLog(limit.SlidingLogConfig{Limit: 2, Window: time.Second})
		start := time.Now()
		for range 6 {
			_ = log.Wait(context.Background(), 1)
			fmt.Print(time.Since(start), " ")
		}
	})
	// Output: 0s 0s 1s 1s 2s 2s
}

// What a query costs is known when it has run. What there is no room for is
// booked for the time when there will be.
func ExampleSlidingLog_Charge() {
	inVirtualTime(func() {
		rows, _ := limit.NewSlidingLog(limit.SlidingLogConfig{Limit: 100, Window: time.Second})
		fmt.Println(rows.Allow())
		rows.Charge(149)
		d := rows.Peek(1)
		fmt.Println(d.OK, d.RetryAfter)
	})
	// Output:
	// true
	// false 1s
}
