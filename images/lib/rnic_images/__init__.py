# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest parts (kernels, modules, root file systems) and the L1 guest of with-kvm. See images/README.md."""
