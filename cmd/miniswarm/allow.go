package main

import (
	"fmt"
	"strconv"
	"strings"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/miniswarm/miniswarm/cluster"
)

// addAllow adds to node update what a node allows its containers beyond the ordinary. It is a label of the node, so that
// every client of Docker's API can see and set it.
func addAllow(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.Name() != "update" {
			continue
		}
		var allow string
		sub.Flags().StringVar(&allow, "allow", "", `What containers may have on the node: "privileged", "devices", "gpus", separated by commas, or "none"`)
		before(sub, func(cmd *cobra.Command) error {
			if !cmd.Flags().Changed("allow") {
				return nil
			}
			if allow == "none" {
				return cmd.Flags().Set("label-rm", cluster.LabelAllow)
			}
			a, err := cluster.ParseAllowance(allow)
			if err == nil && a == (cluster.Allowance{}) {
				err = fmt.Errorf(`nothing is named; "none" takes back what was allowed`)
			}
			if err != nil {
				return wrong("--allow", err)
			}
			return cmd.Flags().Set("label-add", cluster.LabelAllow+"="+a.String())
		})
	}
}

// addExtras adds to service create and update what Docker Swarm has no flags for. They become labels of the containers.
func addExtras(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.Name() != "create" && sub.Name() != "update" {
			continue
		}
		var (
			privileged bool
			devices    []string
			gpus       string
		)
		f := sub.Flags()
		f.BoolVar(&privileged, "privileged", false, "Give extended privileges to the containers, on nodes that allow it (node update --allow privileged)")
		f.StringArrayVar(&devices, "device", nil, "Add a device of the node, PATH[:PATH-IN-CONTAINER[:rwm]], on nodes that allow it (node update --allow devices)")
		f.StringVar(&gpus, "gpus", "", `Add GPUs ("all", a number, or ids), on nodes that allow it (node update --allow gpus)`)
		before(sub, func(cmd *cobra.Command) error {
			for _, q := range []struct{ flag, label, value string }{
				{"privileged", cluster.LabelPrivileged, privilegedValue(privileged)},
				{"device", cluster.LabelDevices, strings.Join(devices, ",")},
				{"gpus", cluster.LabelGPUs, gpus},
			} {
				if !cmd.Flags().Changed(q.flag) {
					continue
				}
				if err := setLabel(cmd, q.label, q.value); err != nil {
					return wrong("--"+q.flag, err)
				}
			}
			return nil
		})
	}
}

// privilegedValue is empty for what is the default.
func privilegedValue(on bool) string {
	if !on {
		return ""
	}
	return strconv.FormatBool(on)
}

// setLabel has a label of the containers set, or taken away where the value is empty, through Docker's own flags.
func setLabel(cmd *cobra.Command, label, value string) error {
	if _, err := cluster.ParseExtras(map[string]string{label: value}); err != nil {
		return err
	}
	switch update := cmd.Name() == "update"; {
	case value == "" && update:
		return cmd.Flags().Set("container-label-rm", label)
	case value == "":
		return nil
	case update:
		return cmd.Flags().Set("container-label-add", label+"="+value)
	}
	return cmd.Flags().Set("container-label", label+"="+value)
}

func wrong(flag string, err error) error {
	return dockercli.StatusError{Status: fmt.Sprintf("%s: %v", flag, err), StatusCode: exitUsage}
}

// before has f run before the command does.
func before(cmd *cobra.Command, f func(*cobra.Command) error) {
	docker := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f(cmd); err != nil {
			return err
		}
		return docker(cmd, args)
	}
}
