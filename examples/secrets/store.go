package main

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
)

// maxNote bounds a note, in bytes.
const maxNote = 1 << 10

// store keeps notes in a file. GET /notes gives all of them, a line each; POST /notes adds one.
type store struct {
	path, password string
	mu             sync.Mutex // held while the file is read or written
}

func newStore(path, password string) http.Handler {
	s := &store{path: path, password: password}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /notes", s.known(s.list))
	mux.HandleFunc("POST /notes", s.known(s.add))
	return mux
}

// known lets in who knows the password.
func (s *store) known(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(password), []byte(s.password)) != 1 {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return
		}
		h(w, r)
	}
}

func (s *store) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	data, err := os.ReadFile(s.path)
	s.mu.Unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(data)
}

func (s *store) add(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNote))
	note := strings.Join(strings.Fields(string(body)), " ")
	if err != nil || note == "" {
		http.Error(w, fmt.Sprintf("a note is 1 to %d bytes of text", maxNote), http.StatusBadRequest)
		return
	}
	if err := s.write(note + "\n"); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// write returns when the line is on the disk.
func (s *store) write(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Sync(), f.Close())
}
