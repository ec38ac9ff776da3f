package pool

// Lease is one loan of a resource. It is a small value: copy it freely, all
// copies are the same loan. The zero Lease lends nothing. Its methods are safe
// for concurrent use.
type Lease[T any] struct {
	r    *resource[T]
	turn uint64
}

// Value is the resource. It must not be used once the lease has ended.
func (l Lease[T]) Value() T {
	if l.r == nil {
		var none T
		return none
	}
	return l.r.value
}

// Release gives the resource back, fit for the next, after OnRelease has seen
// it. Only the first Release, Destroy or Reset of a loan counts; any later does
// nothing, even if the resource has been lent to somebody else by then.
func (l Lease[T]) Release() {
	switch {
	case l.r == nil:
	case l.r.pool.cfg.OnRelease != nil:
		l.r.pool.cleanAndGiveBack(l)
	default:
		l.r.pool.giveBack(l, keep)
	}
}

// Destroy gives the resource back as broken: it is closed in the background,
// and replaced if that is needed. OnRelease does not see it.
func (l Lease[T]) Destroy() {
	if l.r != nil {
		l.r.pool.giveBack(l, broken)
	}
}

// Reset is Destroy for a resource that shows that all others are of no more use
// either, such as a connection to a primary that is none any more: it does the
// Pool's Reset, unless that was done since this resource was dialled. So of many
// callers that find out at the same time, one throws away what there was, and
// none what was dialled since.
func (l Lease[T]) Reset() {
	if l.r != nil && l.r.pool.giveBack(l, outdated) {
		l.r.pool.reset(l.r.generation)
	}
}
