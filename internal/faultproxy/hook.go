package faultproxy

import (
	"bytes"
	"sync"
)

// Hook decides about a chunk before it is forwarded. It is called in order for
// each direction of a connection, and concurrently for different ones, with no
// lock held. It may call the Proxy: after Freeze, the chunk itself waits too.
type Hook func(Chunk) Action

// Chunk is what came from one end of a connection, in one read: a part of a
// message, one, or several.
type Chunk struct {
	Conn       int // numbers connections from 1, in the order of their arrival
	FromServer bool
	Data       []byte // valid until the hook returns
}

// Action is what becomes of a chunk.
type Action uint8

// The actions.
const (
	Pass Action = iota // it is forwarded
	Drop               // it is lost, and the connection goes on
	Cut                // it is lost, and its connection is reset
)

// LoseReply makes a hook that loses the answer to one question: the first chunk
// of any client that contains the text, in either case of its letters, reaches
// the server, and to what the server says next on that connection happens how:
// Drop or Cut. So the server has done what it was asked, and the client cannot
// know: COMMIT is the example. A statement that the client prepares first is two
// questions. lost is closed when the answer is.
func LoseReply(text string, how Action) (hook Hook, lost <-chan struct{}) {
	var (
		mu    sync.Mutex
		asked int // the connection; 0: none yet
		over  bool
		done  = make(chan struct{})
		want  = bytes.ToLower([]byte(text))
	)
	return func(c Chunk) Action {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case over:
		case asked == 0 && !c.FromServer && bytes.Contains(bytes.ToLower(c.Data), want):
			asked = c.Conn
		case asked == c.Conn && c.FromServer:
			over = true
			close(done)
			return how
		}
		return Pass
	}, done
}
