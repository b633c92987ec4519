package cluster

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
)

// Swarm gives services no privileged containers, no devices and no GPUs, and its API has no fields for them. Here a service
// asks for them by labels of its containers, and gets them on nodes that allow them by a label of their own.
const (
	// LabelAllow is a label of a node's specification: a list of "privileged", "devices" and "gpus", separated by commas.
	LabelAllow = "miniswarm.allow"
	// LabelPrivileged asks for a privileged container: "true" or "false".
	LabelPrivileged = "miniswarm.privileged"
	// LabelDevices asks for devices of the node, separated by commas: PATH[:PATH-IN-CONTAINER[:rwm]].
	LabelDevices = "miniswarm.devices"
	// LabelGPUs asks for GPUs: "all", a number of them, or their ids, separated by commas. A single id that is a number is
	// written with "device=" before it.
	LabelGPUs = "miniswarm.gpus"
)

// Allowance is what containers may have beyond the ordinary.
type Allowance struct{ Privileged, Devices, GPUs bool }

// Covers says whether everything in need is allowed.
func (a Allowance) Covers(need Allowance) bool {
	return (a.Privileged || !need.Privileged) && (a.Devices || !need.Devices) && (a.GPUs || !need.GPUs)
}

// String lists what is allowed, as in LabelAllow.
func (a Allowance) String() string {
	var words []string
	for word, on := range a.words() {
		if *on {
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

// words gives each part with its name, in a fixed order.
func (a *Allowance) words() func(func(string, *bool) bool) {
	return func(yield func(string, *bool) bool) {
		_ = yield("privileged", &a.Privileged) && yield("devices", &a.Devices) && yield("gpus", &a.GPUs)
	}
}

// ParseAllowance reads a value of LabelAllow.
func ParseAllowance(text string) (Allowance, error) {
	var a Allowance
	for _, name := range strings.Split(text, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		known := false
		for word, on := range a.words() {
			if word == name {
				*on, known = true, true
			}
		}
		if !known {
			return a, fmt.Errorf("%q is nothing that a node can allow: privileged, devices and gpus are", name)
		}
	}
	return a, nil
}

// Allowed is what a node allows. A label with a word that means nothing allows nothing.
func Allowed(n *Node) Allowance {
	a, err := ParseAllowance(n.Spec.Labels[LabelAllow])
	if err != nil {
		return Allowance{}
	}
	return a
}

// Needs is what a container asks for, as far as its node has to allow it. It is cheap.
func Needs(c *swarm.ContainerSpec) Allowance {
	if c == nil || len(c.Labels) == 0 {
		return Allowance{}
	}
	privileged := false
	if text := c.Labels[LabelPrivileged]; text != "" {
		privileged, _ = strconv.ParseBool(text) // what cannot be read is refused by ParseExtras
	}
	return Allowance{Privileged: privileged, Devices: c.Labels[LabelDevices] != "", GPUs: c.Labels[LabelGPUs] != ""}
}

// Extras are what a container asks for by its labels, in the engine's terms.
type Extras struct {
	Privileged bool
	Devices    []container.DeviceMapping
	GPUs       []container.DeviceRequest
}

// ParseExtras reads the labels of a container. An error says which one is malformed.
func ParseExtras(labels map[string]string) (x Extras, err error) {
	if text := labels[LabelPrivileged]; text != "" {
		if x.Privileged, err = strconv.ParseBool(text); err != nil {
			return x, fmt.Errorf("label %s: %q is neither true nor false", LabelPrivileged, text)
		}
	}
	for _, text := range list(labels[LabelDevices]) {
		d, err := parseDevice(text)
		if err != nil {
			return x, fmt.Errorf("label %s: %q: %w", LabelDevices, text, err)
		}
		x.Devices = append(x.Devices, d)
	}
	if text := labels[LabelGPUs]; text != "" {
		r, err := parseGPUs(text)
		if err != nil {
			return x, fmt.Errorf("label %s: %q: %w", LabelGPUs, text, err)
		}
		x.GPUs = []container.DeviceRequest{r}
	}
	return x, nil
}

// list takes a list apart at its commas.
func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func parseDevice(text string) (container.DeviceMapping, error) {
	parts := strings.Split(text, ":")
	d := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
	switch {
	case len(parts) == 2 && strings.Trim(parts[1], "rwm") == "" && parts[1] != "":
		d.CgroupPermissions = parts[1]
	case len(parts) > 1 && parts[1] != "":
		d.PathInContainer = parts[1]
	}
	if len(parts) == 3 {
		d.CgroupPermissions = parts[2]
	}
	switch {
	case len(parts) > 3:
		return d, errors.New("a device is PATH[:PATH-IN-CONTAINER[:rwm]]")
	case !strings.HasPrefix(d.PathOnHost, "/"), !strings.HasPrefix(d.PathInContainer, "/"):
		return d, errors.New("the path of a device is absolute, such as /dev/ttyUSB0")
	case d.CgroupPermissions == "" || strings.Trim(d.CgroupPermissions, "rwm") != "":
		return d, errors.New("the permissions of a device are of the letters r, w and m")
	}
	return d, nil
}

func parseGPUs(text string) (container.DeviceRequest, error) {
	r := container.DeviceRequest{Capabilities: [][]string{{"gpu"}}}
	if text == "all" {
		r.Count = -1
		return r, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if r.Count = n; n < 1 {
			return r, errors.New("a number of GPUs is at least 1")
		}
		return r, nil
	}
	r.DeviceIDs = list(strings.TrimPrefix(text, "device="))
	for _, id := range r.DeviceIDs {
		if id == "" || strings.ContainsAny(id, " =") {
			return r, errors.New(`GPUs are "all", a number, or ids separated by commas`)
		}
	}
	return r, nil
}
