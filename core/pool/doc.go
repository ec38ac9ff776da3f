// Package pool keeps resources that are dear to make, such as connections, and
// lends them out one caller at a time.
//
//	p, err := pool.New(pool.Config[net.Conn]{
//		Dial:  dial,
//		Close: func(_ context.Context, c net.Conn) { c.Close() },
//	})
//	...
//	lease, err := p.Acquire(ctx)
//	if err != nil {
//		return err
//	}
//	defer lease.Release()
//	use(lease.Value())
//
// Callers are served first come, first served, and the resource used last is
// lent first, so that those not needed grow old and are closed. A caller never
// dials: it waits for whatever comes first, a resource that another gives back
// or one that the pool's own goroutines have dialled. So a spike does not
// become a stampede of dials, and a caller that goes away wastes none.
package pool
