"""`embargo export`: the policy in the formats of other software"""
