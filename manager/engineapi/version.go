package engineapi

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// maxAPIVersion is the newest Engine API whose swarm part is spoken here.
const maxAPIVersion = "1.51"

var versionPrefix = regexp.MustCompile(`^/v([0-9]{1,4}\.[0-9]{1,4})(/|$)`)

// pathKey is the context's key of the path as the client sent it.
type pathKey struct{}

type clientPath struct {
	version string   // "1.41", empty where the path named none
	url     *url.URL // before the version was taken off
}

// versioned takes the API version off the path, so that every endpoint exists once, and keeps it for those that differ.
// Every version is accepted: refusing old clients has broken more users than it has protected.
func versioned(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		was := clientPath{url: r.URL}
		u := *r.URL
		if m := versionPrefix.FindStringSubmatch(u.Path); m != nil {
			was.version = m[1]
			skip := len(m[0]) - len(m[2])
			u.Path = "/" + strings.TrimPrefix(u.Path[skip:], "/")
			if u.RawPath != "" { // the prefix has nothing to escape, so it is as long here
				u.RawPath = "/" + strings.TrimPrefix(u.RawPath[skip:], "/")
			}
		}
		r2 := r.WithContext(context.WithValue(r.Context(), pathKey{}, was))
		r2.URL = &u
		next.ServeHTTP(w, r2)
	})
}

// original gives the request with the path that the client sent, for those who answer it elsewhere.
func original(r *http.Request) *http.Request {
	was, ok := r.Context().Value(pathKey{}).(clientPath)
	if !ok {
		return r
	}
	r2 := r.WithContext(r.Context())
	r2.URL = was.url
	return r2
}

// apiVersion is the version the client speaks, the newest where the path names none.
func apiVersion(r *http.Request) string {
	if was, ok := r.Context().Value(pathKey{}).(clientPath); ok && was.version != "" {
		return was.version
	}
	return maxAPIVersion
}

// versionedPath puts the client's version in front of a path, for questions to the engine on its behalf.
func versionedPath(r *http.Request, path string) string {
	if was, ok := r.Context().Value(pathKey{}).(clientPath); ok && was.version != "" {
		return "/v" + was.version + path
	}
	return path
}
