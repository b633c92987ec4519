package engineapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

func (s *Server) initSwarm(w http.ResponseWriter, r *http.Request) error {
	var req swarm.InitRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Spec.Name != "" && req.Spec.Name != cluster.ClusterName && !s.member() {
		return errorf(http.StatusBadRequest, `swarm spec must be named "default"`)
	}
	id, err := s.cfg.Local.Init(r.Context(), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, id)
	return nil
}

// member says whether this node is part of a swarm, which is refused before what a request says is looked at.
func (s *Server) member() bool {
	state := s.cfg.Local.Info().LocalNodeState
	return state != "" && state != swarm.LocalNodeStateInactive
}

func (s *Server) joinSwarm(w http.ResponseWriter, r *http.Request) error {
	var req swarm.JoinRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if len(req.RemoteAddrs) == 0 && !s.member() {
		return errorf(http.StatusBadRequest, "at least 1 RemoteAddr is required to join")
	}
	if err := s.cfg.Local.Join(r.Context(), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) leaveSwarm(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Local.Leave(r.Context(), flag(r, "force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) inspectSwarm(c Control, w http.ResponseWriter, r *http.Request) error {
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	cl := snap.Cluster()
	if cl == nil {
		return errorf(http.StatusServiceUnavailable, "the swarm is being created; try again")
	}
	writeJSON(w, http.StatusOK, swarm.Swarm{ClusterInfo: redacted(cl), JoinTokens: cl.JoinTokens})
	return nil
}

func (s *Server) unlockSwarm(w http.ResponseWriter, r *http.Request) error {
	var req swarm.UnlockRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := s.cfg.Local.Unlock(r.Context(), req.UnlockKey); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// unlockKey answers with an empty key while autolock is off, as Docker does.
func (s *Server) unlockKey(c Control, w http.ResponseWriter, r *http.Request) error {
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	var answer swarm.UnlockKeyResponse
	if cl := snap.Cluster(); cl != nil {
		answer.UnlockKey = identity.UnlockKey(cl.UnlockKeys).Text()
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// redacted gives the cluster's public part, without keys.
func redacted(cl *cluster.Cluster) swarm.ClusterInfo {
	info := cl.ClusterInfo
	info.Spec.CAConfig.SigningCAKey, info.Spec.CAConfig.SigningCACert = "", ""
	return info
}

const (
	// minCertExpiry is Swarm's bound.
	minCertExpiry = time.Hour
	// minHeartbeat keeps a slip of the finger from making every node do nothing but heartbeats.
	minHeartbeat = 100 * time.Millisecond
)

func (s *Server) updateSwarm(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.Spec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "swarm")
	if err != nil {
		return err
	}
	rotate, err := rotation(r)
	if err != nil {
		return err
	}
	switch {
	case spec.Name != "" && spec.Name != cluster.ClusterName:
		return errorf(http.StatusBadRequest, `swarm spec must be named "default"`)
	case spec.CAConfig.NodeCertExpiry != 0 && spec.CAConfig.NodeCertExpiry < minCertExpiry:
		return rpcErrorf(invalidArgument, "minimum certificate expiry time is: %s", "1h0m0s")
	case spec.Dispatcher.HeartbeatPeriod < 0:
		return rpcErrorf(invalidArgument, "heartbeat time period cannot be a negative duration")
	case spec.Dispatcher.HeartbeatPeriod != 0 && spec.Dispatcher.HeartbeatPeriod < minHeartbeat:
		return rpcErrorf(invalidArgument, "minimum heartbeat time period is: %s", minHeartbeat)
	}
	if err := identity.CheckExternalCAs(spec.CAConfig.ExternalCAs); err != nil {
		return err
	}
	spec.Name = cluster.ClusterName
	// Making keys and asking external CAs takes its time; the version tells below if the cluster was changed meanwhile.
	rerooted, err := configureCA(r.Context(), c, version, spec.CAConfig)
	if err != nil {
		return err
	}
	keep, kept := spec.Raft.LogEntriesForSlowFollowers, uint64(0)
	_, err = c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		cl := snap.Cluster()
		if cl == nil {
			return nil, errorf(http.StatusServiceUnavailable, "the swarm is being created; try again")
		}
		if cl.Version.Index != version {
			return nil, rpcErrorf(unknownCode, "update out of sequence")
		}
		kept = cl.Spec.Raft.LogEntriesForSlowFollowers
		next := *rerooted
		spec.CAConfig = rerooted.Spec.CAConfig // without the key that was taken from it
		next.Spec = spec
		if next.Spec.Labels == nil {
			next.Spec.Labels = map[string]string{}
		}
		if rotate.RotateWorkerToken || rotate.RotateManagerToken {
			tokens, err := identity.NewJoinTokens(cl.RootCA, rand.Reader)
			if err != nil {
				return nil, fmt.Errorf("rotate the join tokens: %w", err)
			}
			if rotate.RotateWorkerToken {
				next.JoinTokens.Worker = tokens.Worker
			}
			if rotate.RotateManagerToken {
				next.JoinTokens.Manager = tokens.Manager
			}
		}
		if next.UnlockKeys, err = nextUnlockKey(cl, spec.EncryptionConfig.AutoLockManagers, rotate.RotateManagerUnlockKey); err != nil {
			return nil, err
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&next)}}, nil
	})
	if err != nil {
		return err
	}
	if keep != kept && keep < raftstore.MinKeepEntries {
		s.cfg.Logger.Warn("LogEntriesForSlowFollowers has no effect where it is less than what is always kept", "asked", keep, "kept", raftstore.MinKeepEntries)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// configureCA gives the cluster at a version with the root CA that want asks for.
func configureCA(ctx context.Context, c Control, version uint64, want swarm.CAConfig) (*cluster.Cluster, error) {
	snap, err := c.Read(ctx)
	if err != nil {
		return nil, err
	}
	cl := snap.Cluster()
	switch {
	case cl == nil:
		return nil, errorf(http.StatusServiceUnavailable, "the swarm is being created; try again")
	case cl.Version.Index != version:
		return nil, rpcErrorf(unknownCode, "update out of sequence")
	}
	next, err := c.ConfigureCA(ctx, cl, want)
	if refusal, ok := errors.AsType[*identity.StatusError](err); ok && refusal.Status == http.StatusBadRequest {
		return nil, rpcErrorf(invalidArgument, "%s", refusal.Message)
	}
	return next, err
}

// nextUnlockKey gives the key with which managers are to lock themselves: none, the one they have, or a new one. There is
// nothing to rotate while autolock is off, and asking for it is no error, as in Docker.
func nextUnlockKey(cl *cluster.Cluster, autolock, rotate bool) (identity.UnlockKey, error) {
	switch {
	case !autolock:
		return nil, nil
	case len(cl.UnlockKeys) > 0 && !rotate:
		return cl.UnlockKeys, nil
	}
	return identity.NewUnlockKey(rand.Reader)
}

// flag reads a boolean query parameter in Docker's lenient way: everything but "", 0, no, false and none is true.
func flag(r *http.Request, name string) bool {
	v := strings.ToLower(strings.TrimSpace(r.URL.Query().Get(name)))
	return !slices.Contains([]string{"", "0", "no", "false", "none"}, v)
}

// boolParam reads a boolean query parameter in Docker's strict way: absent is false.
func boolParam(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, errorf(http.StatusBadRequest, "invalid value for %s: %s: %v", name, v, err)
	}
	return b, nil
}

// rotation reads which secrets of the swarm an update is to replace.
func rotation(r *http.Request) (swarm.UpdateFlags, error) {
	var f swarm.UpdateFlags
	for name, to := range map[string]*bool{"rotateWorkerToken": &f.RotateWorkerToken, "rotateManagerToken": &f.RotateManagerToken,
		"rotateManagerUnlockKey": &f.RotateManagerUnlockKey} {
		if v := r.URL.Query().Get(name); v != "" {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return f, errorf(http.StatusBadRequest, "invalid value for %s: %s", name, v)
			}
			*to = b
		}
	}
	return f, nil
}

// versionParam reads the version that an update is based on.
func versionParam(r *http.Request, what string) (uint64, error) {
	raw := r.URL.Query().Get("version")
	v, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, errorf(http.StatusBadRequest, "invalid %s version '%s': %v", what, raw, err)
	}
	return v, nil
}

// find gives the one object that ref means, or Docker's error.
func find[T cluster.Object](snap *cluster.Snapshot, k cluster.Kind, ref string) (T, error) {
	var none T
	switch found := snap.Matches(k, ref); len(found) {
	case 0:
		return none, errorf(http.StatusNotFound, "%s %s not found", k, ref)
	case 1:
		return found[0].(T), nil
	default:
		return none, errorf(http.StatusBadRequest, "%s %s is ambiguous (%d matches found)", k, ref, len(found))
	}
}

// read gives the object that the request's path means.
func read[T cluster.Object](ctx context.Context, c Control, k cluster.Kind, ref string) (*cluster.Snapshot, T, error) {
	var none T
	snap, err := c.Read(ctx)
	if err != nil {
		return nil, none, err
	}
	o, err := find[T](snap, k, ref)
	return snap, o, err
}
