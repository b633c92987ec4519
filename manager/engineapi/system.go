package engineapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/swarm"
)

const (
	// mergeTimeout bounds how long a merged answer waits for the managers, or the engine: what the others say is worth having without.
	mergeTimeout = 5 * time.Second
	// pingTimeout and engineTimeout bound how long an engine that hangs can hold up clients, who ping before everything else, and often
	// ask for /info then.
	pingTimeout   = time.Second
	engineTimeout = 2 * time.Second
	// fallbackAPIVersion is announced while the engine does not answer and was never heard.
	fallbackAPIVersion = "1.41"
)

const twoManagers = `WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance.`

// ping answers with the engine's headers and the swarm's state. It answers without the engine too: the swarm can be asked
// then.
func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	if said, err := s.engine.ping(r.Context()); err == nil && said.Get("Builder-Version") != "" {
		h.Set("Builder-Version", said.Get("Builder-Version"))
	}
	h.Set("Swarm", s.swarmState())
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, _ = io.WriteString(w, "OK")
	return nil
}

// swarmState is this node's state in the words of the ping's header.
func (s *Server) swarmState() string {
	info := s.cfg.Local.Info()
	state := string(info.LocalNodeState)
	switch {
	case state == "":
		return string(swarm.LocalNodeStateInactive)
	case info.LocalNodeState != swarm.LocalNodeStateActive:
		return state
	case info.ControlAvailable:
		return state + "/manager"
	}
	return state + "/worker"
}

// info is the engine's answer with our swarm in the place of its own. Fields that are not known here stay as they are.
func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	sw := s.swarmInfo(w, r)
	var warnings []string
	answer, age, err := s.engine.about(r.Context(), versionedPath(r, "/info"))
	_ = json.Unmarshal(answer["Warnings"], &warnings) // null or nothing where there are none
	if err != nil {
		warning := "WARNING: " + err.Error()
		if answer == nil {
			answer = withoutEngine()
		} else {
			warning += fmt.Sprintf(" What is shown of it is %s old", age.Round(time.Second))
		}
		warnings = append(warnings, warning)
	}
	warnings = append(warnings, sw.Warnings...)
	for key, v := range map[string]any{"Swarm": sw, "Warnings": warnings} {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		answer[key] = raw
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// withoutEngine is what can be said of this machine while its engine does not answer.
func withoutEngine() map[string]json.RawMessage {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	answer := map[string]json.RawMessage{}
	for key, v := range map[string]any{"Name": name, "OSType": runtime.GOOS, "Architecture": runtime.GOARCH, "NCPU": runtime.NumCPU()} {
		raw, err := json.Marshal(v)
		if err == nil {
			answer[key] = raw
		}
	}
	return answer
}

// swarmInfo is the swarm part of /info: what this node knows of itself and, on a manager, what the store has.
func (s *Server) swarmInfo(w http.ResponseWriter, r *http.Request) swarm.Info {
	info := s.cfg.Local.Info()
	if info.LocalNodeState == "" {
		info.LocalNodeState = swarm.LocalNodeStateInactive
	}
	c, err := s.cfg.Local.Control()
	if err != nil {
		return info
	}
	info.ControlAvailable = true
	if wantsStale(r) {
		c = onItsOwn(c, w)
	}
	ctx, cancel := context.WithTimeout(r.Context(), mergeTimeout)
	defer cancel()
	snap, err := c.Read(ctx)
	if err != nil {
		if info.Error = s.cfg.Local.Info().Error; info.Error == "" { // else the node knows by now why it has no part in the cluster
			info.Error = err.Error()
		}
		return info
	}
	if cl := snap.Cluster(); cl != nil {
		shown := redacted(cl)
		info.Cluster = &shown
	}
	for n := range snap.Nodes() {
		info.Nodes++
		if n.RaftID != 0 && isMember(c, n.ID) {
			info.Managers++
		}
	}
	if info.Managers == 2 && info.LocalNodeState == swarm.LocalNodeStateActive {
		info.Warnings = append(info.Warnings, twoManagers)
	}
	return info
}

// version is the engine's answer with this program as one more component.
func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	var components []json.RawMessage
	answer, _, err := s.engine.about(r.Context(), versionedPath(r, "/version"))
	if err != nil && answer == nil {
		answer = make(map[string]json.RawMessage)
		for key, v := range map[string]string{"Version": s.cfg.Version, "ApiVersion": fallbackAPIVersion, "MinAPIVersion": "1.24", "Os": runtime.GOOS, "Arch": runtime.GOARCH} {
			raw, err := json.Marshal(v)
			if err != nil {
				return err
			}
			answer[key] = raw
		}
	} else if raw, ok := answer["Components"]; ok {
		if err := json.Unmarshal(raw, &components); err != nil {
			return errorf(http.StatusBadGateway, "read the answer of the Docker Engine: %v", err)
		}
	}
	own, err := json.Marshal(types.ComponentVersion{Name: "miniswarm", Version: s.cfg.Version, Details: map[string]string{"GoVersion": runtime.Version()}})
	if err != nil {
		return err
	}
	all, err := json.Marshal(append(components, own))
	if err != nil {
		return err
	}
	answer["Components"] = all
	writeJSON(w, http.StatusOK, answer)
	return nil
}
