package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/miniswarm/miniswarm/cluster"
)

// apiError is an error with the HTTP status and the text that Docker gives it.
type apiError struct {
	status int
	text   string
}

func (e *apiError) Error() string   { return e.text }
func (e *apiError) StatusCode() int { return e.status }

func errorf(status int, format string, args ...any) error {
	return &apiError{status, fmt.Sprintf(format, args...)}
}

// The gRPC codes behind which Docker hides its control API's errors; clients see them in the text.
const (
	invalidArgument    = "InvalidArgument"
	failedPrecondition = "FailedPrecondition"
	alreadyExists      = "AlreadyExists"
	notFound           = "NotFound"
	permissionDenied   = "PermissionDenied"
	unimplemented      = "Unimplemented"
	unknownCode        = "Unknown"
)

var codeStatus = map[string]int{
	invalidArgument: http.StatusBadRequest, failedPrecondition: http.StatusBadRequest, alreadyExists: http.StatusConflict,
	notFound: http.StatusNotFound, permissionDenied: http.StatusForbidden, unimplemented: http.StatusNotImplemented, unknownCode: http.StatusInternalServerError,
}

// rpcErrorf gives an error of the control API, worded as Docker passes it through (swarm-semantics, 10.1).
func rpcErrorf(code, format string, args ...any) error {
	return &apiError{codeStatus[code], "rpc error: code = " + code + " desc = " + fmt.Sprintf(format, args...)}
}

// statusOf gives the status and the text an error is answered with.
func statusOf(err error) (int, string) {
	var coded interface{ StatusCode() int }
	switch {
	case errors.As(err, &coded):
		return coded.StatusCode(), err.Error()
	case errors.Is(err, cluster.ErrOutOfSequence):
		return http.StatusInternalServerError, "rpc error: code = Unknown desc = update out of sequence"
	case errors.Is(err, cluster.ErrNameConflict), errors.Is(err, cluster.ErrExists):
		return http.StatusConflict, "rpc error: code = AlreadyExists desc = " + err.Error()
	case errors.Is(err, cluster.ErrNotExist):
		return http.StatusNotFound, "rpc error: code = NotFound desc = " + err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusInternalServerError, "the managers did not answer in time: " + err.Error()
	}
	return http.StatusInternalServerError, err.Error()
}

func writeError(w http.ResponseWriter, err error) {
	status, text := statusOf(err)
	writeJSON(w, status, map[string]string{"message": text})
}

// writeJSON answers with v. An error of the connection has nobody left to be told.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}

// maxBody bounds a request body: a service with the largest allowed configs is well below it.
const maxBody = 4 << 20

// readJSON decodes the request's body into v with Docker's checks and words. Unknown fields are passed over, and no body at
// all leaves v as it is.
func readJSON(r *http.Request, v any) error {
	ct := r.Header.Get("Content-Type")
	empty := r.Body == nil || r.ContentLength == 0
	if ct != "" || !empty {
		switch mediaType, _, err := mime.ParseMediaType(ct); {
		case err != nil:
			return errorf(http.StatusBadRequest, "malformed Content-Type header (%s): %v", ct, err)
		case mediaType != "application/json":
			return errorf(http.StatusBadRequest, "unsupported Content-Type header (%s): must be 'application/json'", ct)
		}
	}
	if empty {
		return nil
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	if err := dec.Decode(v); err != nil {
		var large *http.MaxBytesError
		switch {
		case errors.As(err, &large):
			return errorf(http.StatusRequestEntityTooLarge, "the request body is larger than %d bytes", large.Limit)
		case errors.Is(err, io.EOF):
			return errorf(http.StatusBadRequest, "invalid JSON: got EOF while reading request body")
		}
		return errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	if dec.More() {
		return errorf(http.StatusBadRequest, "unexpected content after JSON")
	}
	return nil
}
