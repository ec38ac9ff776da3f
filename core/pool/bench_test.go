package pool

import (
	"context"
	"sync"
	"testing"
	"time"
)

func BenchmarkAcquireRelease(b *testing.B) {
	var m maker
	p := open(b, m.config(8))
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		l, err := p.Acquire(ctx)
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}

// 128 goroutines on 8 resources: nearly every Acquire waits.
func BenchmarkContended(b *testing.B) {
	var m maker
	p := open(b, m.config(8))
	ctx := context.Background()
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range 128 {
		n := b.N / 128
		if w < b.N%128 {
			n++
		}
		wg.Go(func() {
			for range n {
				l, err := p.Acquire(ctx)
				if err != nil {
					b.Error(err)
					return
				}
				l.Release()
			}
		})
	}
	wg.Wait()
}

// The same where each caller may give up.
func BenchmarkContendedWithDeadline(b *testing.B) {
	var m maker
	p := open(b, m.config(8))
	b.ReportAllocs()
	var wg sync.WaitGroup
	for w := range 128 {
		n := b.N / 128
		if w < b.N%128 {
			n++
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			for range n {
				l, err := p.Acquire(ctx)
				if err != nil {
					b.Error(err)
					return
				}
				l.Release()
			}
		})
	}
	wg.Wait()
}

func BenchmarkRefused(b *testing.B) {
	var m maker
	p := open(b, m.config(8))
	_ = p.Close(context.Background())
	b.ReportAllocs()
	for b.Loop() {
		_, _ = p.Acquire(context.Background())
	}
}
