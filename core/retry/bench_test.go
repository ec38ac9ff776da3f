package retry

import "testing"

func parallel(b *testing.B, op func()) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			op()
		}
	})
}

func BenchmarkFundFull(b *testing.B) {
	budget := newBudget(b, BudgetConfig{})
	parallel(b, budget.Fund)
}

func BenchmarkFund(b *testing.B) {
	budget := newBudget(b, BudgetConfig{Percent: 1, MinPerSecond: Off, Max: 1e9})
	budget.saved.Store(0)
	parallel(b, budget.Fund)
}

func BenchmarkTake(b *testing.B) {
	budget := newBudget(b, BudgetConfig{Max: 1e9})
	parallel(b, func() { _ = budget.Take() })
}

func BenchmarkTakeRefused(b *testing.B) {
	budget := newBudget(b, BudgetConfig{MinPerSecond: 1, Max: 1})
	drain(budget)
	parallel(b, func() { _ = budget.Take() })
}

func BenchmarkPause(b *testing.B) {
	parallel(b, func() { Backoff{}.Pause(3) })
}
