package engineapi

import (
	"crypto/subtle"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/versions"

	"github.com/miniswarm/miniswarm/cluster"
)

// Sizes are Swarm's: strictly less.
const (
	maxSecret = 512000
	maxConfig = 1024000
)

var payloadName = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`)

func validatePayload(r *http.Request, k cluster.Kind, name string, templating *swarm.Driver) error {
	if v := apiVersion(r); templating != nil && versions.LessThan(v, "1.37") {
		return errorf(http.StatusBadRequest, "%s templating is not supported on the specified API version: %s", k, v)
	}
	if name == "" {
		return rpcErrorf(invalidArgument, "name must be provided")
	}
	if len(name) > 64 || !payloadName.MatchString(name) {
		return rpcErrorf(invalidArgument, "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	}
	return nil
}

func (s *Server) listSecrets(c Control, w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "names", "name", "id", "label")
	if err != nil {
		return err
	}
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	out := []swarm.Secret{}
	for o := range snap.Secrets() {
		if prefixed(args, "name", o.Spec.Name) && prefixed(args, "id", o.ID) && labelled(args, "label", o.Spec.Labels) &&
			(!args.Contains("names") || args.ExactMatch("names", o.Spec.Name)) {
			out = append(out, presentSecret(o))
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// presentSecret gives a secret without its data: that leaves the managers only towards tasks.
func presentSecret(o *cluster.Secret) swarm.Secret {
	out := o.Secret
	out.Spec.Data = nil
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	return out
}

func (s *Server) inspectSecret(c Control, w http.ResponseWriter, r *http.Request) error {
	_, o, err := read[*cluster.Secret](r.Context(), c, cluster.KindSecret, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, presentSecret(o))
	return nil
}

func (s *Server) createSecret(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.SecretSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	if err := validatePayload(r, cluster.KindSecret, spec.Name, spec.Templating); err != nil {
		return err
	}
	switch {
	case spec.Driver != nil && spec.Driver.Name == "":
		return rpcErrorf(invalidArgument, "secret driver must have a name")
	case spec.Driver != nil:
		return rpcErrorf(unimplemented, "secret %s: secret drivers are not supported (driver %q): give its data instead", spec.Name, spec.Driver.Name)
	case len(spec.Data) == 0, len(spec.Data) >= maxSecret:
		return rpcErrorf(invalidArgument, "secret data must be larger than 0 and less than %d bytes", maxSecret)
	}
	o := &cluster.Secret{}
	o.ID, o.Spec = c.IDs().Next(), spec
	return createPayload(c, w, r, o)
}

func createPayload(c Control, w http.ResponseWriter, r *http.Request, o cluster.Object) error {
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		for other := range snap.Objects(o.Kind()) {
			if strings.EqualFold(other.ObjectName(), o.ObjectName()) {
				return nil, rpcErrorf(alreadyExists, "%s %s already exists", o.Kind(), o.ObjectName())
			}
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(o)}}, nil
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, map[string]string{"ID": o.ObjectID()})
	return nil
}

func (s *Server) updateSecret(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.SecretSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	return relabel(c, w, r, cluster.KindSecret, func(o *cluster.Secret) (cluster.Object, error) {
		next := *o
		next.Spec.Labels = spec.Labels
		return &next, onlyLabels(o.Spec.Name, spec.Name, o.Spec.Data, spec.Data)
	})
}

// relabel updates a secret or a config. Edit gives the next version of what there is.
func relabel[T cluster.Object](c Control, w http.ResponseWriter, r *http.Request, k cluster.Kind, edit func(T) (cluster.Object, error)) error {
	asked, err := payloadVersion(r, k)
	if err != nil {
		return err
	}
	_, err = c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		o, err := find[T](snap, k, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		next, err := edit(o)
		if err != nil {
			return nil, err
		}
		if o.ObjectMeta().Version.Index != asked {
			return nil, rpcErrorf(unknownCode, "update out of sequence")
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(next)}}, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// onlyLabels refuses to change anything else of a secret or config.
func onlyLabels(name, newName string, data, newData []byte) error {
	if newName != name || newData != nil && subtle.ConstantTimeCompare(data, newData) == 0 {
		return rpcErrorf(invalidArgument, "only updates to Labels are allowed")
	}
	return nil
}

// payloadVersion reads the version that an update of a secret or config is based on; Docker says less about a bad one here
// than elsewhere.
func payloadVersion(r *http.Request, k cluster.Kind) (uint64, error) {
	v, err := strconv.ParseUint(r.URL.Query().Get("version"), 10, 64)
	if err != nil {
		return 0, errorf(http.StatusBadRequest, "invalid %s version", k)
	}
	return v, nil
}

func (s *Server) removeSecret(c Control, w http.ResponseWriter, r *http.Request) error {
	return removePayload[*cluster.Secret](c, w, r, cluster.KindSecret, func(cs *swarm.ContainerSpec, id string) bool {
		return slices.ContainsFunc(cs.Secrets, func(ref *swarm.SecretReference) bool { return ref.SecretID == id })
	})
}

// removePayload deletes a secret or a config that no service uses.
func removePayload[T cluster.Object](c Control, w http.ResponseWriter, r *http.Request, k cluster.Kind, uses func(*swarm.ContainerSpec, string) bool) error {
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		o, err := find[T](snap, k, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		var users []string
		for svc := range snap.Services() {
			if cs := svc.Spec.TaskTemplate.ContainerSpec; cs != nil && uses(cs, o.ObjectID()) {
				users = append(users, svc.Spec.Name)
			}
		}
		if len(users) > 0 {
			slices.Sort(users)
			word := "service"
			if len(users) > 1 {
				word = "services"
			}
			return nil, rpcErrorf(invalidArgument, "%s '%s' is in use by the following %s: %s", k, o.ObjectName(), word, strings.Join(users, ", "))
		}
		// A service that begins to use it while this commits must lose, or it would refer to nothing.
		return &cluster.Txn{Time: time.Now(), Guards: []cluster.Guard{{Kind: cluster.KindService, Index: snap.Index()}}, Changes: []cluster.Change{cluster.RemoveSeen(o)}}, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) listConfigs(c Control, w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "name", "id", "label")
	if err != nil {
		return err
	}
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	out := []swarm.Config{}
	for o := range snap.Configs() {
		if prefixed(args, "name", o.Spec.Name) && prefixed(args, "id", o.ID) && labelled(args, "label", o.Spec.Labels) {
			out = append(out, presentConfig(o))
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func presentConfig(o *cluster.Config) swarm.Config {
	out := o.Config
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	return out
}

func (s *Server) inspectConfig(c Control, w http.ResponseWriter, r *http.Request) error {
	_, o, err := read[*cluster.Config](r.Context(), c, cluster.KindConfig, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, presentConfig(o))
	return nil
}

func (s *Server) createConfig(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ConfigSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	if err := validatePayload(r, cluster.KindConfig, spec.Name, spec.Templating); err != nil {
		return err
	}
	if len(spec.Data) == 0 || len(spec.Data) >= maxConfig {
		return rpcErrorf(invalidArgument, "config data must be larger than 0 and less than %d bytes", maxConfig)
	}
	o := &cluster.Config{}
	o.ID, o.Spec = c.IDs().Next(), spec
	return createPayload(c, w, r, o)
}

func (s *Server) updateConfig(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ConfigSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	return relabel(c, w, r, cluster.KindConfig, func(o *cluster.Config) (cluster.Object, error) {
		next := *o
		next.Spec.Labels = spec.Labels
		return &next, onlyLabels(o.Spec.Name, spec.Name, o.Spec.Data, spec.Data)
	})
}

func (s *Server) removeConfig(c Control, w http.ResponseWriter, r *http.Request) error {
	return removePayload[*cluster.Config](c, w, r, cluster.KindConfig, func(cs *swarm.ContainerSpec, id string) bool {
		return slices.ContainsFunc(cs.Configs, func(ref *swarm.ConfigReference) bool { return ref.ConfigID == id })
	})
}
