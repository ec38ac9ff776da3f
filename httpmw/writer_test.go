package httpmw

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// The parts of a base writer. Each counts its calls.
type (
	plainBase struct {
		http.ResponseWriter
		calls map[string]int
	}
	flushBase struct{ calls map[string]int }
	flushErrs struct{ flushBase }
	hijacks   struct{ calls map[string]int }
	readsFrom struct {
		to    io.Writer
		calls map[string]int
	}
	pushes struct{ calls map[string]int }
)

var errBase = errors.New("of the base")

func (b flushBase) Flush()            { b.calls["Flush"]++ }
func (b flushErrs) FlushError() error { b.calls["FlushError"]++; return errBase }
func (b hijacks) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	b.calls["Hijack"]++
	return nil, nil, nil
}

func (b readsFrom) ReadFrom(src io.Reader) (int64, error) {
	b.calls["ReadFrom"]++
	return io.Copy(b.to, src)
}
func (b pushes) Push(string, *http.PushOptions) error { b.calls["Push"]++; return errBase }

// bases is a base writer for each combination of optional interfaces.
func bases() map[int]http.ResponseWriter {
	all := map[int]http.ResponseWriter{}
	for can := range 16 {
		calls := map[string]int{}
		p := plainBase{httptest.NewRecorder(), calls}
		f, h, r, u := flushBase{calls}, hijacks{calls}, readsFrom{io.Discard, calls}, pushes{calls}
		all[can] = []http.ResponseWriter{
			p,
			struct {
				plainBase
				flushBase
			}{p, f},
			struct {
				plainBase
				hijacks
			}{p, h},
			struct {
				plainBase
				flushBase
				hijacks
			}{p, f, h},
			struct {
				plainBase
				readsFrom
			}{p, r},
			struct {
				plainBase
				flushBase
				readsFrom
			}{p, f, r},
			struct {
				plainBase
				hijacks
				readsFrom
			}{p, h, r},
			struct {
				plainBase
				flushBase
				hijacks
				readsFrom
			}{p, f, h, r},
			struct {
				plainBase
				pushes
			}{p, u},
			struct {
				plainBase
				flushBase
				pushes
			}{p, f, u},
			struct {
				plainBase
				hijacks
				pushes
			}{p, h, u},
			struct {
				plainBase
				flushBase
				hijacks
				pushes
			}{p, f, h, u},
			struct {
				plainBase
				readsFrom
				pushes
			}{p, r, u},
			struct {
				plainBase
				flushBase
				readsFrom
				pushes
			}{p, f, r, u},
			struct {
				plainBase
				hijacks
				readsFrom
				pushes
			}{p, h, r, u},
			struct {
				plainBase
				flushBase
				hijacks
				readsFrom
				pushes
			}{p, f, h, r, u},
		}[can]
	}
	return all
}

func TestWriterHasTheInterfacesOfItsBase(t *testing.T) {
	for can, base := range bases() {
		calls := base.(interface{ counts() map[string]int }).counts()
		want := map[string]int{}
		rec, w := new(guarded).record(base, httptest.NewRequest("GET", "/", nil))
		require.Same(t, rec, w.(interface{ self() *recorder }).self())

		f, ok := w.(http.Flusher)
		require.Equal(t, can&canFlush != 0, ok, "Flusher, base %04b", can)
		if ok {
			f.Flush()
			want["Flush"]++
		} else {
			require.ErrorIs(t, http.NewResponseController(w).Flush(), http.ErrNotSupported)
		}

		h, ok := w.(http.Hijacker)
		require.Equal(t, can&canHijack != 0, ok, "Hijacker, base %04b", can)
		if ok {
			_, _, err := h.Hijack()
			require.NoError(t, err)
			want["Hijack"]++
		} else {
			_, _, err := http.NewResponseController(w).Hijack()
			require.ErrorIs(t, err, http.ErrNotSupported)
		}

		r, ok := w.(io.ReaderFrom)
		require.Equal(t, can&canReadFrom != 0, ok, "ReaderFrom, base %04b", can)
		if ok {
			n, err := r.ReadFrom(strings.NewReader("four"))
			require.NoError(t, err)
			require.EqualValues(t, 4, n)
			want["ReadFrom"]++
		}

		p, ok := w.(http.Pusher)
		require.Equal(t, can&canPush != 0, ok, "Pusher, base %04b", can)
		if ok {
			require.Equal(t, errBase, p.Push("/", nil))
			want["Push"]++
		}
		require.Equal(t, want, calls, "base %04b", can)
	}
}

func (b plainBase) counts() map[string]int { return b.calls }

func TestFlushErrorOfTheBaseIsPassedOn(t *testing.T) {
	calls := map[string]int{}
	base := struct {
		plainBase
		flushErrs
	}{plainBase{httptest.NewRecorder(), calls}, flushErrs{flushBase{calls}}}
	_, w := new(guarded).record(base, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, errBase, http.NewResponseController(w).Flush())
	w.(http.Flusher).Flush()
	require.Equal(t, map[string]int{"FlushError": 2}, calls)
}

// Since 1.22 an *os.File copies itself, and still ends in ReadFrom.
func TestCopyOfAFileReachesTheBase(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte("from a file"), 0o600))
	file, err := os.Open(name)
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()

	calls, to := map[string]int{}, &strings.Builder{}
	base := struct {
		plainBase
		readsFrom
	}{plainBase{httptest.NewRecorder(), calls}, readsFrom{to, calls}}
	g := &fakeGuard{wants: core.WantsResult}
	Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.Copy(w, file)
		require.NoError(t, err)
	})).ServeHTTP(base, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, 1, calls["ReadFrom"])
	require.Equal(t, "from a file", to.String())
	got := g.only(t)
	require.Equal(t, core.Success, got.Outcome)
	require.Positive(t, got.Latency)
}

// A source that fails before its first byte leaves the status open.
func TestReadFromNothingIsNoAnswer(t *testing.T) {
	calls := map[string]int{}
	base := struct {
		plainBase
		readsFrom
	}{plainBase{httptest.NewRecorder(), calls}, readsFrom{io.Discard, calls}}
	g := &fakeGuard{wants: core.WantsResult}
	Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.Copy(w, io.MultiReader(failing{}))
		require.ErrorIs(t, err, errBase)
		w.WriteHeader(502)
	})).ServeHTTP(base, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, 1, calls["ReadFrom"])
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBase }

func TestWriteStringReachesTheBase(t *testing.T) {
	base := httptest.NewRecorder()
	rec, w := new(guarded).record(base, httptest.NewRequest("GET", "/", nil))
	n, err := io.WriteString(w, "text")
	require.NoError(t, err)
	require.Equal(t, 4, n)
	require.Equal(t, "text", base.Body.String())
	require.EqualValues(t, 200, rec.status)
}

func TestHijackIsSuccessWhateverFollows(t *testing.T) {
	base := struct {
		plainBase
		hijacks
	}{plainBase{httptest.NewRecorder(), nil}, hijacks{map[string]int{}}}
	g := &fakeGuard{wants: core.WantsResult}
	ctx, leave := context.WithCancel(t.Context())
	Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _, err := w.(http.Hijacker).Hijack()
		require.NoError(t, err)
		require.Equal(t, 1, g.holding())
		leave()
		w.WriteHeader(500)
	})).ServeHTTP(base, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
	got := g.only(t)
	require.Equal(t, core.Success, got.Outcome)
	require.Positive(t, got.Latency)
}

func TestHijackThatFailsIsNoAnswer(t *testing.T) {
	base := struct {
		plainBase
		failingHijack
	}{plainBase{httptest.NewRecorder(), nil}, failingHijack{}}
	g := &fakeGuard{wants: core.WantsResult}
	Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _, err := w.(http.Hijacker).Hijack()
		require.Equal(t, errBase, err)
		w.WriteHeader(500)
	})).ServeHTTP(base, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

type failingHijack struct{}

func (failingHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errBase }
