package engineapi

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

const headerRegistryAuth = "X-Registry-Auth"

func (s *Server) listServices(c Control, w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "name", "id", "label", "mode", "runtime")
	if err != nil {
		return err
	}
	status, err := boolParam(r, "status")
	if err != nil {
		return err
	}
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	out := []swarm.Service{}
	for svc := range snap.Services() {
		if !servicePasses(args, svc) {
			continue
		}
		shown := presentService(svc)
		if status {
			shown.ServiceStatus = serviceStatus(snap, svc)
		}
		out = append(out, shown)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func servicePasses(args filters.Args, svc *cluster.Service) bool {
	return prefixed(args, "name", svc.Spec.Name) && prefixed(args, "id", svc.ID) && labelled(args, "label", svc.Spec.Labels) &&
		(!args.Contains("mode") || args.ExactMatch("mode", modeName(svc.Spec.Mode))) &&
		(!args.Contains("runtime") || args.ExactMatch("runtime", string(swarm.RuntimeContainer)))
}

func modeName(m swarm.ServiceMode) string {
	switch {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

// presentService gives a service as clients see it.
func presentService(svc *cluster.Service) swarm.Service {
	out := svc.Service
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	if len(out.Endpoint.Ports)+len(out.Endpoint.VirtualIPs) == 0 {
		out.Endpoint.Spec = swarm.EndpointSpec{} // Swarm tells it with what was allocated for it, or not at all
	}
	return out
}

// serviceStatus counts what service ls shows: tasks that run, and tasks wanted. A global service wants one task of
// every node that may have one, which is what the orchestrator has made of it; nodes that are down do not count.
func serviceStatus(snap *cluster.Snapshot, svc *cluster.Service) *swarm.ServiceStatus {
	if isJob(svc.Spec.Mode) {
		return jobStatus(snap, svc)
	}
	st := &swarm.ServiceStatus{}
	for t := range snap.TasksOfService(svc.ID) {
		n := snap.Node(t.NodeID)
		up := n == nil || n.Status.State != swarm.NodeStateDown
		if up && t.Wanted() && t.Status.State == swarm.TaskStateRunning {
			st.RunningTasks++
		}
		if svc.Spec.Mode.Global != nil && up && t.Wanted() {
			st.DesiredTasks++
		}
	}
	if m := svc.Spec.Mode.Replicated; m != nil && m.Replicas != nil {
		st.DesiredTasks = *m.Replicas
	}
	return st
}

func (s *Server) inspectService(c Control, w http.ResponseWriter, r *http.Request) error {
	defaults, err := boolParam(r, "insertDefaults")
	if err != nil {
		return err
	}
	_, svc, err := read[*cluster.Service](r.Context(), c, cluster.KindService, r.PathValue("id"))
	if err != nil {
		return err
	}
	shown := presentService(svc)
	if defaults {
		shown.Spec = withServiceDefaults(shown.Spec)
	}
	writeJSON(w, http.StatusOK, shown)
	return nil
}

func (s *Server) createService(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ServiceSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	if spec.Name == "" {
		spec.Name = randomName()
	}
	if err := normalizeSpec(&spec, apiVersion(r)); err != nil {
		return err
	}
	warnings := append(s.resolveForOldClient(r, &spec), neverPlaced(spec)...)
	id := c.IDs().Next()
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		resolved, changes, err := resolveSpec(snap, spec, c.IDs())
		if err != nil {
			return nil, err
		}
		if err := validateSpec(snap, resolved, nil); err != nil {
			return nil, err
		}
		if snap.ServiceNamed(resolved.Name) != nil {
			return nil, rpcErrorf(alreadyExists, "name conflicts with an existing object: service %s already exists", resolved.Name)
		}
		svc := &cluster.Service{RegistryAuth: r.Header.Get(headerRegistryAuth)}
		svc.ID, svc.Spec = id, resolved
		runJob(svc)
		if resolved.EndpointSpec != nil {
			svc.Endpoint.Spec = *resolved.EndpointSpec
		}
		return &cluster.Txn{Time: time.Now(), Guards: referenceGuards(snap), Changes: append(changes, cluster.CreateOf(svc))}, nil
	})
	if err != nil {
		return s.explainNetwork(r.Context(), err)
	}
	writeJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: id, Warnings: warnings})
	return nil
}

// neverPlaced warns of what Swarm accepts as well, and then waits with for ever.
func neverPlaced(spec swarm.ServiceSpec) []string {
	if spec.TaskTemplate.Placement == nil {
		return nil
	}
	return scheduler.Hopeless(spec.TaskTemplate.Placement.Constraints)
}

// referenceGuards hold what a specification was checked against until it is stored: the names and ports of other services,
// and the networks, secrets and configs it refers to.
func referenceGuards(snap *cluster.Snapshot) []cluster.Guard {
	var guards []cluster.Guard
	for _, k := range []cluster.Kind{cluster.KindService, cluster.KindNetwork, cluster.KindSecret, cluster.KindConfig} {
		guards = append(guards, cluster.Guard{Kind: k, Index: snap.Index()})
	}
	return guards
}

func (s *Server) updateService(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ServiceSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "service")
	if err != nil {
		return err
	}
	query := r.URL.Query()
	rollback := query.Get("rollback")
	if rollback != "" && rollback != "none" && rollback != "previous" {
		return errorf(http.StatusInternalServerError, "unrecognized rollback option %s", rollback)
	}
	authFrom := query.Get("registryAuthFrom")
	if authFrom != "" && authFrom != swarm.RegistryAuthFromSpec && authFrom != swarm.RegistryAuthFromPreviousSpec {
		return errorf(http.StatusBadRequest, "invalid registryAuthFrom '%s'", authFrom)
	}
	if err := normalizeSpec(&spec, apiVersion(r)); err != nil {
		return err
	}
	warnings := s.resolveForOldClient(r, &spec)
	if rollback != "previous" { // which passes over the specification that comes with it
		warnings = append(warnings, neverPlaced(spec)...)
	}
	auth := r.Header.Get(headerRegistryAuth)
	_, err = c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		svc, err := find[*cluster.Service](snap, cluster.KindService, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		resolved, changes, err := resolveSpec(snap, spec, c.IDs())
		if err != nil {
			return nil, err
		}
		if err := validateSpec(snap, resolved, svc); err != nil {
			return nil, err
		}
		if err := checkImmutable(svc, resolved); err != nil {
			return nil, err
		}
		next := *svc
		if rollback == "previous" {
			err = rollBack(&next)
		} else {
			err = replaceSpec(&next, resolved, version, auth, authFrom)
		}
		if err != nil {
			return nil, err
		}
		runJob(&next)
		if svc.Version.Index != version { // last, as in Docker
			return nil, rpcErrorf(unknownCode, "update out of sequence")
		}
		return &cluster.Txn{Time: time.Now(), Guards: referenceGuards(snap), Changes: append(changes, cluster.UpdateOf(&next))}, nil
	})
	if err != nil {
		return s.explainNetwork(r.Context(), err)
	}
	writeJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: warnings})
	return nil
}

// checkImmutable refuses changes of what a service keeps for life.
func checkImmutable(svc *cluster.Service, spec swarm.ServiceSpec) error {
	if svc.Spec.Name != spec.Name {
		return rpcErrorf(unimplemented, "renaming services is not supported")
	}
	if modeName(svc.Spec.Mode) != modeName(spec.Mode) {
		return rpcErrorf(unimplemented, "service mode change is not allowed")
	}
	return nil
}

// replaceSpec makes spec the service's, and the present one its previous. The spec version is that of the request. An update
// that lets a paused one go on keeps the previous spec: what was paused is not what a rollback should go back to.
func replaceSpec(svc *cluster.Service, spec swarm.ServiceSpec, version uint64, auth, authFrom string) error {
	if auth == "" {
		switch authFrom {
		case swarm.RegistryAuthFromPreviousSpec:
			if svc.PreviousSpec == nil {
				return errorf(http.StatusInternalServerError, "service does not have a previous spec")
			}
			auth = svc.PreviousRegistryAuth
		default:
			auth = svc.RegistryAuth
		}
	}
	if !goesOn(svc, spec) {
		previous := svc.Spec
		svc.PreviousSpec, svc.PreviousSpecVersion, svc.PreviousRegistryAuth = &previous, svc.SpecVersion, svc.RegistryAuth
	}
	svc.Spec, svc.RegistryAuth = spec, auth
	svc.SpecVersion.Index = version
	svc.UpdateStatus = nil
	return nil
}

// goesOn says whether an update asks for what a paused one was about.
func goesOn(svc *cluster.Service, spec swarm.ServiceSpec) bool {
	if svc.PreviousSpec == nil || svc.UpdateStatus == nil || svc.UpdateStatus.State != swarm.UpdateStatePaused {
		return false
	}
	was, err := json.Marshal(svc.Spec)
	if err != nil {
		return false
	}
	is, err := json.Marshal(spec) // as clients see it: they send back what they were given
	return err == nil && bytes.Equal(was, is)
}

// rollBack swaps the service's specs; a second rollback brings the newer one back.
func rollBack(svc *cluster.Service) error {
	if svc.PreviousSpec == nil {
		return rpcErrorf(failedPrecondition, "service %s does not have a previous spec", svc.ID)
	}
	current := svc.Spec
	svc.Spec, svc.PreviousSpec = *svc.PreviousSpec, &current
	svc.SpecVersion, svc.PreviousSpecVersion = svc.PreviousSpecVersion, svc.SpecVersion
	svc.RegistryAuth, svc.PreviousRegistryAuth = svc.PreviousRegistryAuth, svc.RegistryAuth
	if isJob(svc.Spec.Mode) {
		svc.UpdateStatus = nil // it is run again; nothing is rolled back slot by slot, which could come to an end
		return nil
	}
	svc.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, Message: "manually requested rollback"}
	return nil
}

func (s *Server) removeService(c Control, w http.ResponseWriter, r *http.Request) error {
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		svc, err := find[*cluster.Service](snap, cluster.KindService, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.RemoveSeen(svc)}}, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// randomName names a service whose creator gave none.
func randomName() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return "service-" + hex.EncodeToString(b[:])
}
