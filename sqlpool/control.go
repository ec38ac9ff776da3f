package sqlpool

import (
	"context"

	"github.com/surgewall/surgewall/core/pool"
)

// Resize changes MinIdle and Max, by the rules of Config: see the method of
// core/pool. The error lists all that is wrong, and then nothing has changed.
func (p *Pool) Resize(minIdle, maximum int) error { return p.pool.Resize(minIdle, maximum) }

// Reset replaces all connections: idle ones at once, the others when they are
// given back. Call it after a change of a password or an address. The Pool does
// so by itself when a server that was a primary says that it is a standby now,
// by refusing to write (25006): after a failover, connections of before would
// read, and fail to write, for as long as they live. PostgreSQL tells since
// version 14.
func (p *Pool) Reset() { p.pool.Reset() }

// Warm dials until there are n connections and waits for them: see the method of
// core/pool for its errors.
func (p *Pool) Warm(ctx context.Context, n int) error { return p.pool.Warm(ctx, n) }

// Held is who has held a connection for longer than LeakAfter: a transaction
// that waits, rows that nobody closes, a Conn that nobody releases.
func (p *Pool) Held() []pool.Held { return p.pool.Held() }
