//go:build !unix

package sqlpool

import (
	"net"
	"time"
)

// checkEvery is how long a connection is idle before it is pinged. Nothing else
// finds out here that it is broken.
const checkEvery = time.Second

// peeker looks at nothing here.
type peeker struct{}

func newPeeker(net.Conn) peeker { return peeker{} }

func (peeker) quiet() bool { return true }
