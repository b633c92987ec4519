package engineapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/miniswarm/miniswarm/manager/backup"
)

// backupCluster streams a sealed backup. What goes wrong after its first byte breaks the connection off: a backup that was not
// written to its end is known as such.
func (s *Server) backupCluster(w http.ResponseWriter, r *http.Request) error {
	var req backup.Request
	if err := readJSON(r, &req); err != nil {
		return err
	}
	out := &firstByte{w: w}
	err := s.cfg.Local.Backup(r.Context(), req.Secret, out)
	if err != nil && out.begun {
		s.cfg.Logger.Warn("a backup was broken off", "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// firstByte notes whether an answer has begun.
type firstByte struct {
	w     http.ResponseWriter
	begun bool
}

func (f *firstByte) Write(b []byte) (int, error) {
	if !f.begun {
		f.begun = true
		f.w.Header().Set("Content-Type", "application/octet-stream")
		f.w.WriteHeader(http.StatusOK)
	}
	return f.w.Write(b)
}

// recoverCluster makes a cluster of this machine alone, from a backup in the body or from its own disk. What is asked for, the
// backup's secret in it, is in a header, as credentials for registries are.
func (s *Server) recoverCluster(w http.ResponseWriter, r *http.Request) error {
	var req backup.RecoverRequest
	raw, err := base64.URLEncoding.DecodeString(r.Header.Get(backup.RecoverHeader))
	if err == nil {
		err = json.Unmarshal(raw, &req)
	}
	if err != nil {
		return errorf(http.StatusBadRequest, "the header %s is not JSON in base64", backup.RecoverHeader) // what it has is not repeated: a secret
	}
	report, err := s.cfg.Local.Recover(r.Context(), req, r.Body)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, report)
	return nil
}

// rejoinCluster tells this node where its cluster's managers are now.
func (s *Server) rejoinCluster(w http.ResponseWriter, r *http.Request) error {
	var req backup.RejoinRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := s.cfg.Local.Rejoin(r.Context(), req.Addr); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
