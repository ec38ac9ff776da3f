package httpmw

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/surgewall/surgewall/core"
)

// flusher, hijacker and readerFrom are the optional interfaces of a recorder.
// A pusher needs no part of ours: a push is no answer.
type (
	flusher    struct{ flushes *recorder }
	hijacker   struct{ hijacks *recorder }
	readerFrom struct{ reads *recorder }
)

// Flush sends the header, so it implies status 200.
func (f flusher) Flush() { _ = f.flushes.FlushError() }

// Hijack is an answer in itself: what is said on the connection from then on
// is not ours to judge.
func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.hijacks.hijack() }

func (rec *recorder) hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(rec.base).Hijack()
	if err == nil {
		rec.note(http.StatusSwitchingProtocols)
	}
	return conn, buffered, err
}

// hijackedBelow is the base of a recorder that can be hijacked only through its
// own Unwrap.
type hijackedBelow struct{ rec *recorder }

func (h hijackedBelow) Header() http.Header         { return h.rec.base.Header() }
func (h hijackedBelow) WriteHeader(status int)      { h.rec.base.WriteHeader(status) }
func (h hijackedBelow) Write(b []byte) (int, error) { return h.rec.base.Write(b) }
func (h hijackedBelow) Unwrap() http.ResponseWriter { return h.rec.base }

func (h hijackedBelow) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.rec.hijack() }

// ReadFrom implies status 200 with the first byte, and not before: when src
// fails at once, the handler can still answer with an error. The time to the
// first byte is not known, so it is that of the call.
func (f readerFrom) ReadFrom(src io.Reader) (int64, error) {
	rec := f.reads
	var latency time.Duration
	if rec.status == 0 {
		latency = rec.guard.now() - rec.started
	}
	rec.copying = true
	n, err := rec.base.(io.ReaderFrom).ReadFrom(src)
	rec.copying = false
	rec.bytes += n
	if n > 0 && rec.status == 0 {
		rec.noteAt(http.StatusOK, latency)
	}
	return n, err
}

// Which of the optional interfaces a writer has.
const (
	canFlush = 1 << iota
	canHijack
	canReadFrom
	canPush
)

// record returns a recorder for the answer to r, and the writer to give to the
// handler: the recorder with the optional interfaces that base has, and no
// others. Both are one allocation, which is why each combination is a type of
// its own with the recorder inside.
func (g *guarded) record(base http.ResponseWriter, r *http.Request) (*recorder, http.ResponseWriter) {
	rec, w := compose(base)
	rec.base, rec.request, rec.guard = base, r, g
	rec.left, rec.started = core.TimeLeft(r.Context()), g.now()
	return rec, w
}

func compose(base http.ResponseWriter) (*recorder, http.ResponseWriter) {
	can := 0
	if _, ok := base.(http.Flusher); ok {
		can |= canFlush
	}
	if _, ok := base.(http.Hijacker); ok {
		can |= canHijack
	}
	if _, ok := base.(io.ReaderFrom); ok {
		can |= canReadFrom
	}
	push, ok := base.(http.Pusher)
	if ok {
		can |= canPush
	}
	switch can {
	default:
		w := &recorder{}
		return w, w
	case canFlush:
		w := &struct {
			recorder
			flusher
		}{}
		w.flusher = flusher{&w.recorder}
		return &w.recorder, w
	case canHijack:
		w := &struct {
			recorder
			hijacker
		}{}
		w.hijacker = hijacker{&w.recorder}
		return &w.recorder, w
	case canFlush | canHijack:
		w := &struct {
			recorder
			flusher
			hijacker
		}{}
		w.flusher, w.hijacker = flusher{&w.recorder}, hijacker{&w.recorder}
		return &w.recorder, w
	case canReadFrom:
		w := &struct {
			recorder
			readerFrom
		}{}
		w.readerFrom = readerFrom{&w.recorder}
		return &w.recorder, w
	case canFlush | canReadFrom:
		w := &struct {
			recorder
			flusher
			readerFrom
		}{}
		w.flusher, w.readerFrom = flusher{&w.recorder}, readerFrom{&w.recorder}
		return &w.recorder, w
	case canHijack | canReadFrom:
		w := &struct {
			recorder
			hijacker
			readerFrom
		}{}
		w.hijacker, w.readerFrom = hijacker{&w.recorder}, readerFrom{&w.recorder}
		return &w.recorder, w
	case canFlush | canHijack | canReadFrom:
		w := &struct {
			recorder
			flusher
			hijacker
			readerFrom
		}{}
		w.flusher, w.hijacker, w.readerFrom = flusher{&w.recorder}, hijacker{&w.recorder}, readerFrom{&w.recorder}
		return &w.recorder, w
	case canPush:
		w := &struct {
			recorder
			http.Pusher
		}{}
		w.Pusher = push
		return &w.recorder, w
	case canFlush | canPush:
		w := &struct {
			recorder
			flusher
			http.Pusher
		}{}
		w.flusher, w.Pusher = flusher{&w.recorder}, push
		return &w.recorder, w
	case canHijack | canPush:
		w := &struct {
			recorder
			hijacker
			http.Pusher
		}{}
		w.hijacker, w.Pusher = hijacker{&w.recorder}, push
		return &w.recorder, w
	case canFlush | canHijack | canPush:
		w := &struct {
			recorder
			flusher
			hijacker
			http.Pusher
		}{}
		w.flusher, w.hijacker, w.Pusher = flusher{&w.recorder}, hijacker{&w.recorder}, push
		return &w.recorder, w
	case canReadFrom | canPush:
		w := &struct {
			recorder
			readerFrom
			http.Pusher
		}{}
		w.readerFrom, w.Pusher = readerFrom{&w.recorder}, push
		return &w.recorder, w
	case canFlush | canReadFrom | canPush:
		w := &struct {
			recorder
			flusher
			readerFrom
			http.Pusher
		}{}
		w.flusher, w.readerFrom, w.Pusher = flusher{&w.recorder}, readerFrom{&w.recorder}, push
		return &w.recorder, w
	case canHijack | canReadFrom | canPush:
		w := &struct {
			recorder
			hijacker
			readerFrom
			http.Pusher
		}{}
		w.hijacker, w.readerFrom, w.Pusher = hijacker{&w.recorder}, readerFrom{&w.recorder}, push
		return &w.recorder, w
	case canFlush | canHijack | canReadFrom | canPush:
		w := &struct {
			recorder
			flusher
			hijacker
			readerFrom
			http.Pusher
		}{}
		w.flusher, w.hijacker, w.readerFrom, w.Pusher = flusher{&w.recorder}, hijacker{&w.recorder}, readerFrom{&w.recorder}, push
		return &w.recorder, w
	}
}
