package retry

import "github.com/surgewall/surgewall/core"

// BudgetStats is a Budget at one moment.
type BudgetStats struct {
	Taken     uint64 // retries paid for
	Refused   uint64 // retries refused
	Available int    // how many could be taken now, at once
	Max       int    // the most that could
}

// Stats reads the numbers. Those of a nil *Budget are zero.
func (b *Budget) Stats() BudgetStats {
	if b == nil {
		return BudgetStats{}
	}
	return BudgetStats{
		Taken:     b.taken.Load(),
		Refused:   b.refused.Load(),
		Available: int(b.available() / token),
		Max:       b.cfg.Max,
	}
}

// Name is the configured name.
func (b *Budget) Name() string {
	if b == nil {
		return ""
	}
	return b.cfg.Name
}

// Inspect reports the budget as it is now.
func (b *Budget) Inspect() core.Report {
	const kind = "retry_budget"
	if b == nil {
		return core.Report{Kind: kind}
	}
	s := b.Stats()
	return core.Report{
		Kind: kind, Name: b.cfg.Name,
		Values: []core.Value{
			core.Count("surgewall.retry_budget.retries", "{retry}", s.Taken).With("result", "acquired"),
			core.Count("surgewall.retry_budget.retries", "{retry}", s.Refused).With("result", "rejected"),
			core.Amount("surgewall.retry_budget.retries.available", "{retry}", int64(s.Available)),
		},
		Settings: []core.Setting{
			{Name: "Percent", Value: b.cfg.Percent},
			{Name: "MinPerSecond", Value: b.cfg.MinPerSecond},
			{Name: "Max", Value: b.cfg.Max},
		},
	}
}
