package engineapi

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"runtime"
	"sync"
	"time"
)

// face is what the engine said of itself last. Answers that need it go on with that while the engine does not answer.
type face struct {
	mu sync.Mutex

	headers http.Header       // guarded by mu; nil before the engine was heard
	asked   time.Time         // guarded by mu; when it was asked for them, last
	answers map[string]memory // guarded by mu; by path
}

// memory is an answer of the engine, and when it gave it.
type memory struct {
	answer map[string]json.RawMessage
	at     time.Time
}

// facePause is how long the engine is not asked again for its headers after it has not answered: every request waits for that.
const facePause = 10 * time.Second

// faceHeaders are those that Docker puts on every answer.
var faceHeaders = []string{"Api-Version", "Docker-Experimental", "Ostype", "Server"}

// learn remembers the headers of an answer of the engine.
func (f *face) learn(h http.Header) {
	if h.Get("Api-Version") == "" {
		return // of no endpoint that it knows
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := make(http.Header) // what others are being dressed with stays as it is
	maps.Copy(next, f.headers)
	f.headers = next
	for _, k := range faceHeaders {
		if v := h.Get(k); v != "" {
			f.headers.Set(k, v)
		}
	}
}

// dress puts on h what an answer of Docker has and h lacks.
func (f *face) dress(h http.Header) {
	f.mu.Lock()
	known := f.headers
	f.mu.Unlock()
	if known == nil {
		known = http.Header{"Api-Version": {fallbackAPIVersion}, "Docker-Experimental": {"false"}, "Ostype": {runtime.GOOS}}
	}
	for k, v := range known {
		if len(h[k]) == 0 {
			h[k] = v
		}
	}
}

// mayAsk says whether to ask the engine for its headers now.
func (f *face) mayAsk(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.headers != nil || now.Sub(f.asked) < facePause {
		return false
	}
	f.asked = now
	return true
}

// ping asks the engine for its headers, for a moment, and gives all that it answers with.
func (e *engine) ping(ctx context.Context) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	resp, err := e.open(ctx, http.MethodHead, "/_ping", nil, nil)
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	e.face.learn(resp.Header)
	return resp.Header, nil
}

// about gives the engine's answer about itself. Of an engine that does not answer within engineTimeout it gives the last answer, nil if there
// was none, with its age and the error.
func (e *engine) about(ctx context.Context, path string) (answer map[string]json.RawMessage, age time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	err = e.get(ctx, path, nil, &answer)
	f, now := &e.face, time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		last := f.answers[path]
		return maps.Clone(last.answer), now.Sub(last.at), err
	}
	if f.answers == nil || len(f.answers) > maxAnswers {
		f.answers = make(map[string]memory)
	}
	f.answers[path] = memory{maps.Clone(answer), now}
	return answer, 0, nil
}

// maxAnswers bounds what is remembered: clients name the version in the path.
const maxAnswers = 16

// dressed puts on every answer the headers that Docker's have.
func (s *Server) dressed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.engine.face.mayAsk(time.Now()) {
			_, _ = s.engine.ping(r.Context()) // without an answer there is less to say
		}
		d := &dressing{ResponseWriter: w, face: &s.engine.face}
		next.ServeHTTP(d, r)
		if !d.written {
			d.face.dress(d.Header()) // the server writes the status itself
		}
	})
}

// dressing is a ResponseWriter that adds what is missing at the last moment: what comes from an engine has it already.
type dressing struct {
	http.ResponseWriter
	face    *face
	written bool
}

// WriteHeader implements http.ResponseWriter.
func (d *dressing) WriteHeader(status int) {
	d.face.dress(d.Header())
	d.written = d.written || status >= http.StatusOK
	d.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (d *dressing) Write(p []byte) (int, error) {
	if !d.written {
		d.WriteHeader(http.StatusOK)
	}
	return d.ResponseWriter.Write(p)
}

// FlushError is what http.ResponseController flushes with.
func (d *dressing) FlushError() error {
	if !d.written {
		d.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(d.ResponseWriter).Flush()
}

// Unwrap gives http.ResponseController what else the writer can do.
func (d *dressing) Unwrap() http.ResponseWriter { return d.ResponseWriter }
