package compose

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-connections/nat"
	"github.com/docker/go-units"
	"gopkg.in/yaml.v3"

	"github.com/miniswarm/miniswarm/cluster"
)

// rewrites are what is done with a service's keys before Docker's loader sees them. Those that its schema does not know
// are taken out afterwards.
var rewrites map[string]func(w *work, key, value *yaml.Node) error

func init() { // the functions refer to Keys, which refers to nothing
	rewrites = map[string]func(w *work, key, value *yaml.Node) error{
		"cpus":            moveTo("!!str", "deploy", "resources", "limits", "cpus"),
		"mem_limit":       moveTo("!!str", "deploy", "resources", "limits", "memory"),
		"mem_reservation": moveTo("!!str", "deploy", "resources", "reservations", "memory"),
		"pids_limit":      moveTo("", "deploy", "resources", "limits", "pids"),
		"scale":           moveTo("", "deploy", "replicas"),
		"deploy":          gpusOfDeploy,
		"depends_on":      dependsOn,
		"profiles":        takeProfiles,
		"restart":         noteRestart,
		"env_file":        envFiles,
		"ports":           ports,
		"secrets":         modes,
		"configs":         modes,
		"tmpfs":           tmpfs,
		"shm_size":        shmSize,
		"group_add":       groupAdd,
		"dns_opt":         dnsOptions,
		"security_opt":    securityOptions,
		"privileged":      privileged,
		"devices":         devices,
		"gpus":            gpus,
	}
}

// moveTo gives a value the place that Swarm's part of the format has for it.
func moveTo(tag string, path ...string) func(w *work, key, value *yaml.Node) error {
	return func(w *work, key, value *yaml.Node) error {
		if value.Tag == "!!null" {
			return nil
		}
		parent := child(w.node, key.Line, path[:len(path)-1]...)
		if parent == nil {
			return nil // Docker's schema says what is wrong there
		}
		last := path[len(path)-1]
		if there := get(parent, last); there != nil && there.Value != value.Value {
			return w.mistake(key.Line, fmt.Sprintf("says %s, but %s says %s", value.Value, strings.Join(path, "."), there.Value), key.Value)
		}
		moved := *value
		if tag != "" && moved.Kind == yaml.ScalarNode {
			moved.Tag, moved.Style = tag, yaml.DoubleQuotedStyle
		}
		put(parent, last, &moved, key.Line)
		return nil
	}
}

func takeProfiles(w *work, _, value *yaml.Node) error {
	names, err := w.values(value, "profiles")
	if err != nil {
		return err
	}
	w.f.stack.profiles[w.service] = append(w.f.stack.profiles[w.service], names...)
	return nil
}

func noteRestart(w *work, key, value *yaml.Node) error {
	if get(w.node, "deploy", "restart_policy") != nil {
		w.note(key.Line, "ignored, deploy.restart_policy is given", "restart")
		return nil
	}
	text, err := w.value(value, "restart")
	if err != nil {
		return err
	}
	policy, attempts, limited := strings.Cut(text, ":")
	switch policy {
	case "always", "unless-stopped":
		w.note(key.Line, "taken as deploy.restart_policy.condition any", "restart")
	case "on-failure":
		if limited {
			attempts = ", max_attempts " + attempts
		}
		w.note(key.Line, "taken as deploy.restart_policy.condition on-failure"+attempts, "restart")
	case "no", "false":
		w.note(key.Line, "ignored, a task that ends is replaced; deploy.restart_policy.condition none keeps it from that", "restart")
	}
	return nil
}

// envFiles turns the objects of the list into paths, and leaves out those that are not there and need not be.
func envFiles(w *work, key, value *yaml.Node) error {
	if value.Kind != yaml.SequenceNode {
		return nil
	}
	items := list(value.Line)
	for _, item := range value.Content {
		if item.Kind != yaml.MappingNode {
			items.Content = append(items.Content, item)
			continue
		}
		p := get(item, "path")
		if p == nil {
			return w.mistake(item.Line, "an environment file needs its path", "env_file")
		}
		required, err := w.boolean(get(item, "required"), true, "env_file", "required")
		if err != nil {
			return err
		}
		path, err := w.value(p, "env_file", "path")
		if err != nil {
			return err
		}
		if _, err := os.Stat(absolute(w.f.stack.opts.Dir, path)); !required && os.IsNotExist(err) {
			continue
		}
		items.Content = append(items.Content, p)
	}
	put(w.node, "env_file", items, key.Line)
	return nil
}

// ports makes numbers of published ports that are written as strings, and takes out addresses, which a cluster cannot keep.
func ports(w *work, _, value *yaml.Node) error {
	for i, item := range value.Content {
		place := []string{"ports", strconv.Itoa(i)}
		if item.Kind == yaml.MappingNode {
			for _, name := range []string{"published", "target"} {
				p := get(item, name)
				if p == nil || p.Tag != "!!str" {
					continue
				}
				text, err := w.value(p, append(place, name)...)
				if err != nil {
					return err
				}
				if w.f.raw(p) {
					continue
				}
				if text == "" && name == "published" {
					remove(item, name)
					continue
				}
				if _, err := strconv.ParseUint(text, 10, 16); err != nil {
					return w.mistake(p.Line, fmt.Sprintf("%q is no port: a range has to be written in the short form", text), append(place, name)...)
				}
				p.Tag, p.Style, p.Value = "!!int", 0, text
			}
			continue
		}
		text, err := w.value(item, place...)
		if err != nil {
			return err
		}
		mappings, err := nat.ParsePortSpec(text)
		if err != nil || len(mappings) == 0 || mappings[0].Binding.HostIP == "" {
			continue // Docker's loader says what is wrong
		}
		ip := mappings[0].Binding.HostIP
		w.note(item.Line, fmt.Sprintf("the address %s is ignored, a published port is open on every address of every node", ip), place...)
		text = strings.TrimPrefix(strings.TrimPrefix(text, "["+ip+"]:"), ip+":")
		item.Value, item.Tag, item.Style = strings.TrimPrefix(text, ":"), "!!str", yaml.DoubleQuotedStyle
	}
	return nil
}

// modes makes numbers of file modes that are written as strings of octal digits.
func modes(w *work, key, value *yaml.Node) error {
	for i, item := range value.Content {
		m := get(item, "mode")
		if m == nil || m.Tag != "!!str" || w.f.raw(m) {
			continue
		}
		text, err := w.value(m, key.Value, strconv.Itoa(i), "mode")
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(text, 8, 32)
		if err != nil {
			return w.mistake(m.Line, fmt.Sprintf("%q is no file mode: it is written in octal digits, as \"0440\"", text), key.Value, strconv.Itoa(i), "mode")
		}
		m.Tag, m.Style, m.Value = "!!int", 0, strconv.FormatUint(n, 10)
	}
	return nil
}

// mount adds a mount of type tmpfs.
func (w *work) mount(line int, target string, size int64) {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: line}
	put(m, "type", str("tmpfs", line), line)
	put(m, "target", str(target, line), line)
	if size > 0 {
		options := child(m, line, "tmpfs")
		put(options, "size", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(size, 10), Line: line}, line)
	}
	vols := get(w.node, "volumes")
	if vols == nil || vols.Tag == "!!null" {
		vols = list(line)
		put(w.node, "volumes", vols, line)
	}
	vols.Content = append(vols.Content, m)
}

func tmpfs(w *work, key, value *yaml.Node) error {
	all, err := w.values(value, "tmpfs")
	if err != nil {
		return err
	}
	for _, text := range all {
		target, options, _ := strings.Cut(text, ":")
		size := int64(0)
		for o := range strings.SplitSeq(options, ",") {
			name, v, _ := strings.Cut(o, "=")
			switch {
			case name == "size":
				if size, err = units.RAMInBytes(v); err != nil {
					return w.mistake(key.Line, fmt.Sprintf("%s: %q is no size", text, v), "tmpfs")
				}
			case name != "" && name != "rw":
				w.note(key.Line, "the option "+o+" is ignored, "+noSetting, "tmpfs")
			}
		}
		w.mount(key.Line, target, size)
	}
	remove(w.node, "tmpfs")
	return nil
}

func shmSize(w *work, key, value *yaml.Node) error {
	text, err := w.value(value, "shm_size")
	if err != nil || w.f.raw(value) {
		return err
	}
	size, err := units.RAMInBytes(text)
	if err != nil {
		return w.mistake(key.Line, fmt.Sprintf("%q is no size", text), "shm_size")
	}
	w.mount(key.Line, "/dev/shm", size)
	remove(w.node, "shm_size")
	return nil
}

func groupAdd(w *work, _, value *yaml.Node) error {
	groups, err := w.values(value, "group_add")
	e := w.f.stack.extraOf(w.service)
	e.groups = append(e.groups, groups...)
	return err
}

func dnsOptions(w *work, _, value *yaml.Node) error {
	options, err := w.values(value, "dns_opt")
	e := w.f.stack.extraOf(w.service)
	e.dnsOptions = append(e.dnsOptions, options...)
	return err
}

func securityOptions(w *work, key, value *yaml.Node) error {
	options, err := w.values(value, "security_opt")
	if err != nil {
		return err
	}
	e := w.f.stack.extraOf(w.service)
	for _, o := range options {
		switch strings.Replace(o, ":", "=", 1) {
		case "no-new-privileges", "no-new-privileges=true":
			e.privileges.NoNewPrivileges = true
		case "seccomp=unconfined":
			e.privileges.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}
		case "apparmor=unconfined":
			e.privileges.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDisabled}
		default:
			w.note(key.Line, o+" is ignored, "+noSetting, "security_opt")
			continue
		}
		e.privileged = true
	}
	return nil
}

// label gives the service's containers a label.
func (w *work) label(line int, name, value string) {
	switch labels := get(w.node, "labels"); {
	case labels != nil && labels.Kind == yaml.SequenceNode:
		labels.Content = append(labels.Content, str(name+"="+value, line))
	default:
		if m := child(w.node, line, "labels"); m != nil {
			put(m, name, str(value, line), line)
		}
	}
}

func privileged(w *work, key, value *yaml.Node) error {
	on, err := w.boolean(value, false, "privileged")
	if err == nil && on {
		w.label(key.Line, cluster.LabelPrivileged, "true")
	}
	return err
}

func devices(w *work, key, value *yaml.Node) error {
	var all []string
	short := list(value.Line)
	for _, item := range value.Content {
		text := ""
		if item.Kind == yaml.MappingNode {
			if get(item, "source") == nil {
				return w.mistake(item.Line, "a device needs its source", "devices")
			}
			var parts []string
			for _, name := range []string{"source", "target", "permissions"} {
				if v := get(item, name); v != nil {
					part, err := w.value(v, "devices", name)
					if err != nil {
						return err
					}
					parts = append(parts, part)
				}
			}
			text = strings.Join(parts, ":")
		} else {
			var err error
			if text, err = w.value(item, "devices"); err != nil {
				return err
			}
		}
		all = append(all, text)
		short.Content = append(short.Content, str(text, item.Line))
	}
	if len(all) > 0 {
		w.label(key.Line, cluster.LabelDevices, strings.Join(all, ","))
	}
	put(w.node, "devices", short, key.Line)
	return nil
}

// gpus takes the words of docker run --gpus: all, a number, or device=ID,ID.
func gpus(w *work, key, value *yaml.Node) error {
	if value.Kind == yaml.ScalarNode {
		text, err := w.value(value, "gpus")
		if err == nil && text != "" {
			w.label(key.Line, cluster.LabelGPUs, text)
		}
		return err
	}
	return w.gpuRequests(key.Line, value.Content, "gpus")
}

func (w *work) gpuRequests(line int, requests []*yaml.Node, path ...string) error {
	for _, r := range requests {
		if ids := get(r, "device_ids"); ids != nil && ids.Kind == yaml.SequenceNode {
			names, err := w.values(ids, strings.Join(path, "."))
			if err != nil {
				return err
			}
			w.label(line, cluster.LabelGPUs, "device="+strings.Join(names, ","))
			continue
		}
		count := "all"
		if c := get(r, "count"); c != nil {
			var err error
			if count, err = w.value(c, append(path, "count")...); err != nil {
				return err
			}
		}
		w.label(line, cluster.LabelGPUs, strings.TrimPrefix(strings.Replace(count, "-1", "all", 1), "+"))
	}
	return nil
}

// gpusOfDeploy takes the older way to ask for GPUs.
func gpusOfDeploy(w *work, _, value *yaml.Node) error {
	reservations := get(value, "resources", "reservations")
	requests := get(reservations, "devices")
	if requests == nil {
		return nil
	}
	var wanted []*yaml.Node
	for _, r := range requests.Content {
		caps := get(r, "capabilities")
		if caps != nil && slices.ContainsFunc(caps.Content, func(c *yaml.Node) bool { return c.Value == "gpu" }) {
			wanted = append(wanted, r)
			continue
		}
		w.note(r.Line, "ignored, of devices by capability only GPUs are known", "deploy", "resources", "reservations", "devices")
	}
	line := requests.Line
	remove(reservations, "devices")
	return w.gpuRequests(line, wanted, "deploy", "resources", "reservations", "devices")
}
