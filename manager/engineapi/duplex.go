package engineapi

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

// duplex lets a request be answered while its body is still on its way, which HTTP/1 servers must be told, and keeps track of
// the body for lastAnswer. It comes right before the request is passed on: servers fail over bodies that a handler left unread.
func duplex(w http.ResponseWriter, r *http.Request) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	_ = http.NewResponseController(w).EnableFullDuplex() // not where w is a recorder
	b := &sentBody{ReadCloser: r.Body}
	out := r.WithContext(context.WithValue(r.Context(), bodyKey{}, b)) // the proxy wraps bodies in its own
	out.Body = b
	return out
}

// bodyKey is the context's key of a request's sentBody.
type bodyKey struct{}

// sentBody is a body that is passed on, and may be read for a moment after the request was answered.
type sentBody struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.ended.Store(true)
	}
	return n, err
}

// lastAnswer makes an answer the last on its connection if the body of the request that was passed on has not been read to its
// end: whoever reads it would get in the way of the next request. A connection that is upgraded has no next one.
func lastAnswer(answer http.Header, passedOn *http.Request) {
	if b, ok := passedOn.Context().Value(bodyKey{}).(*sentBody); ok && !b.ended.Load() && answer.Get("Upgrade") == "" {
		answer.Set("Connection", "close")
	}
}
